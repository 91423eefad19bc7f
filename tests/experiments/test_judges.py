"""Judges of several kinds and sizes on the same comparisons, from a config to a page."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import special

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import judge_metrics
from nlhf_jax.experiments.judges import run as judges
from nlhf_jax.experiments.judges.config import make_experiment
from nlhf_jax.experiments.language import config as language_config
from nlhf_jax.experiments.language.judge_stage import make_judge_network
from nlhf_jax.storage import json_lines
from nlhf_jax.tasks.summaries import generator
from tests.judges import faults, published

ROOT = Path(__file__).parents[2]
WORDS = ['red', 'green', 'blue', 'big', 'small', 'ball', 'tree', 'house']


@pytest.fixture
def config_of(toy, monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT))
  return lambda name, *source: toy(importlib.import_module(f'configs.{name}').get_config(*source))


def write(path, prompts, answers):
  """All pairs of some answers to each prompt; the one with more letters wins two votes of three."""
  rows = []
  for number in range(prompts):
    said = [' '.join((2 * WORDS)[number % 8 :][: i + 1]) for i in range(answers)]
    for i in range(answers):
      for j in range(i):
        share = 2 / 3 if len(said[i]) > len(said[j]) else 1 / 3
        row = {'prompt': f'say {number}', 'left': said[i], 'right': said[j], 'preference': share}
        rows.append(row | {'votes': 3})
  json_lines.write(path, rows)


@pytest.mark.slow
def test_three_kinds_in_two_sizes_and_what_reads_nothing(config_of, tmp_path, capsys):
  config = config_of('preferences')
  config.data.update(posts=256, held_out=64)
  config.sizes = {'small': {}, 'wide': {'width': 24}}
  run = lambda: judges.run(make_experiment(config, 'p', tmp_path / 'stages'), tmp_path)
  results = run()
  kinds = ('preference model', 'reward model', 'embedding model')
  judges = [f'{kind}, {size}' for size in ('small', 'wide') for kind in kinds]
  assert list(results['judges']) == judges
  said = results['sets']['held out']
  assert list(said) == [*judges, 'always the longer', 'bag of words', 'raters']
  assert all(row['comparisons'] == 64 for row in said.values())
  assert said['raters']['accuracy'] == max(row['accuracy'] for row in said.values())
  for name in judges[1:3]:  # these are antisymmetric as they are
    assert said[name]['first_place'] == pytest.approx(0, abs=1e-6)
  small, wide = (results['judges'][f'preference model, {size}'] for size in ('small', 'wide'))
  assert small['parameters'] < wide['parameters']
  assert small['curve']['at'] == [2]
  assert results['transitivity'][judges[0]]['responses'] == len(generator.STYLES)
  assert json.loads((tmp_path / 'results.json').read_text()).keys() == results.keys()
  page = (tmp_path / 'report.html').read_text()
  assert page.count('<img') == 4
  assert 'bag of words' in page
  assert 'always the longer' in capsys.readouterr().out
  before = (tmp_path / 'results.json').read_bytes()
  run()
  assert (tmp_path / 'results.json').read_bytes() == before


def test_own_comparisons_and_sets_that_nothing_is_learned_from(config_of, tmp_path):
  write(tmp_path / 'mine.jsonl', prompts=20, answers=4)
  write(tmp_path / 'theirs.jsonl', prompts=3, answers=2)
  config = config_of('preferences', 'file')
  config.data.update(path=str(tmp_path / 'mine.jsonl'), form='graded', held_out=0.3)
  config.tests.update(path=str(tmp_path / 'theirs.jsonl'), form='graded')
  config.judges = 'learned'
  results = judges.run(make_experiment(config, 'p', tmp_path / 'stages'), tmp_path / 'run')
  assert results['comparisons'] == 14 * 6
  sets = results['sets']
  assert {name: row['preference model']['comparisons'] for name, row in sets.items()} == {
    'held out': 6 * 6,
    'theirs.jsonl': 3,
  }
  for row in sets.values():
    longer = row['always the longer']
    assert longer['longer_votes'] == pytest.approx(2 / 3)
    assert longer['accuracy'] == 1
    votes = np.array([2 / 3, 1 / 3])
    assert longer['log_loss'] == pytest.approx(-np.sum(votes * np.log(votes)))
    assert 'raters' not in row
  assert results['transitivity']['preference model']['responses'] == 4
  assert results['transitivity']['preference model']['prompts'] == 6


def test_judges_from_outside_are_asked_for_what_they_say(config_of, tmp_path, capsys):
  """The remote one likes the longer response, but has nothing to say of those that begin red."""
  pytest.importorskip('openai', reason='the remote judge needs the extra remote')
  write(tmp_path / 'mine.jsonl', prompts=20, answers=4)
  (tmp_path / 'pairrm').mkdir()
  published.save(tmp_path / 'pairrm', 'port')
  config = config_of('preferences', 'file')
  config.data.update(path=str(tmp_path / 'mine.jsonl'), form='graded', held_out=0.3)
  config.judges, config.pairrm.hf = 'learned,pairrm,remote', str(tmp_path / 'pairrm')

  def behave(content, before):
    left, right = (text.partition(' - ')[2] for text in content.split('\n\n')[2:4])
    if left.startswith('red'):
      return faults.Reply(faults.said('Hard to say.'))
    return faults.Reply(faults.said('1' if len(left) > len(right) else '2'))

  with faults.serve(behave) as served:
    config.remote.update(url=served.url, model='m', key='', tolerated=1.0)
    experiment = make_experiment(config, 'p', tmp_path / 'stages')
    results = judges.run(experiment, tmp_path)
    asked = len(served.seen)
  corpus = experiment.first.corpus
  texts = judges.as_texts(corpus.texts(corpus.held_out))
  rows = results['sets']['held out']
  red = sum(left.startswith('red') for left in texts.left)
  assert 0 < red < len(texts.left)
  assert (rows['remote']['unusable'], rows['remote']['comparisons']) == (red, 36 - red)
  assert (rows['remote']['accuracy'], rows['remote']['consistency']) == (1, 1)
  assert rows['remote']['longer'] == 1
  assert rows['pairrm']['comparisons'] == rows['preference model']['comparisons'] == 36
  there, back = (
    experiment.first.given['pairrm']().read(texts.prompts, *sides)
    for sides in ((texts.left, texts.right), (texts.right, texts.left))
  )
  logit = (special.logit(there) - special.logit(back)) / 2
  chance = special.expit(logit)
  assert rows['pairrm']['log_loss'] == pytest.approx(
    judge_metrics.log_loss(chance, texts.votes), rel=1e-4
  )
  assert rows['pairrm']['first_place'] == pytest.approx(np.mean(there + back - 1) / 2, abs=1e-6)
  cycles = results['transitivity']
  assert cycles['remote']['prompts'] == 6 - red // 6
  assert cycles['remote']['three_cycles'] == 0
  assert 0 < cycles['pairrm']['cyclic_energy'] < 1
  counts = results['outside']['remote']['counts']
  assert counts['asked'] == counts['requests'] == asked
  page, printed = (tmp_path / 'report.html').read_text(), capsys.readouterr().out
  for sentence in (f'The remote judge is m at {served.url}', 'remote has no usable verdict on'):
    assert sentence in page
    assert sentence in printed
  config.judges = 'pairrm'  # and then nothing is trained
  alone = make_experiment(config, 'p', tmp_path / 'others')
  again = judges.run(alone, tmp_path / 'alone')
  assert again['judges'] == {}
  assert again['sets']['held out']['pairrm'] == rows['pairrm']
  assert not list((tmp_path / 'others').glob('*/stage.json'))


def test_points_of_the_embedding_model_are_drawn_by_the_seed(config_of, tmp_path):
  def points(seed):
    config = config_of('preferences')
    config.seed = seed
    kind = make_judge_network(
      language_config.make_experiment(config, 'p', tmp_path), 'embedding_model'
    )
    return kind.init({})['verdict']

  np.testing.assert_array_equal(points(0), points(0))
  assert not np.allclose(points(0), points(1))


@pytest.mark.parametrize(
  ('section', 'changes', 'said'),
  [
    ('sizes', {'x': {'depth': 3}}, r"config\.sizes\.x: 'depth' is none of width, "),
    ('sizes', {}, r'config\.sizes is empty'),
    ('judges', 'learned,oracle', r"config\.judges='learned,oracle' must be some of learned, "),
    ('judges', 'learned,learned', 'must be some of'),
    ('tests', {'path': 'none.jsonl'}, r"config\.tests\.path: cannot read 'none.jsonl'"),
    ('tests', {'path': 'x.jsonl', 'form': 'own'}, r"config\.tests\.form='own' is none of"),
    ('tests', {'path': 'x.jsonl', 'split': 'a,b'}, r"config\.tests\.split='a,b' names 2 for 1"),
  ],
)
def test_mistakes_are_told_in_a_sentence(section, changes, said, config_of, tmp_path):
  config = config_of('preferences')
  if section == 'tests':
    config.tests.update(changes)
  else:
    config[section] = changes
  with pytest.raises(UserError, match=said):
    make_experiment(config, 'p', tmp_path)
