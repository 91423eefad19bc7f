"""The experiment that compares judges of several kinds and sizes, from config to report."""

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
from tests import described_runs
from tests.judges import faults, published

ROOT = Path(__file__).parents[2]
WORDS = ['red', 'green', 'blue', 'big', 'small', 'ball', 'tree', 'house']


@pytest.fixture
def config_of(toy, monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT))
  return lambda name, *source: toy(
    importlib.import_module(f'nlhf_jax.configs.{name}').get_config(*source)
  )


def write(path, prompts, answers):
  """All pairs of several answers to each prompt; the longer one wins two votes of three."""
  rows = []
  for number in range(prompts):
    texts = [' '.join((2 * WORDS)[number % 8 :][: i + 1]) for i in range(answers)]
    for i in range(answers):
      for j in range(i):
        share = 2 / 3 if len(texts[i]) > len(texts[j]) else 1 / 3
        row = {'prompt': f'say {number}', 'left': texts[i], 'right': texts[j], 'preference': share}
        rows.append(row | {'votes': 3})
  json_lines.write(path, rows)


@pytest.mark.slow
def test_judges_of_two_sizes_and_baselines_are_compared(config_of, tmp_path, capsys):
  config = config_of('preferences')
  config.data.update(posts=256, held_out=64)
  config.sizes = {'small': {}, 'wide': {'width': 24}}
  run = lambda: judges.run(make_experiment(config, 'p', tmp_path / 'stages'), tmp_path)
  results = run()
  assert described_runs.undescribed(tmp_path, 'judges') == set()
  kinds = ('preference model', 'reward model', 'general preference model')
  labels = [f'{kind}, {size}' for size in ('small', 'wide') for kind in kinds]
  assert list(results['judges']) == labels
  metrics = results['sets']['held out']
  assert list(metrics) == [*labels, 'always the longer', 'bag of words', 'raters']
  assert all(row['comparisons'] == 64 for row in metrics.values())
  assert metrics['raters']['accuracy'] == max(row['accuracy'] for row in metrics.values())
  for name in labels[1:3]:  # networks that are antisymmetric by construction
    assert metrics[name]['first_place'] == pytest.approx(0, abs=1e-6)
  small, wide = (results['judges'][f'preference model, {size}'] for size in ('small', 'wide'))
  assert small['parameters'] < wide['parameters']
  assert small['curve']['at'] == [2]
  assert results['transitivity'][labels[0]]['responses'] == len(generator.STYLES)
  assert json.loads((tmp_path / 'results.json').read_text()).keys() == results.keys()
  page = (tmp_path / 'report.html').read_text()
  assert page.count('class="plot"') == page.count('<figure id=') == 4
  assert all(f'<h3>{style}</h3>' in page for style in generator.STYLES)
  assert 'bag of words' in page
  assert 'always the longer' in capsys.readouterr().out
  before = (tmp_path / 'results.json').read_bytes()
  run()
  assert (tmp_path / 'results.json').read_bytes() == before


def test_own_comparisons_and_test_sets(config_of, tmp_path):
  write(tmp_path / 'mine.jsonl', prompts=20, answers=4)
  write(tmp_path / 'theirs.jsonl', prompts=3, answers=2)
  config = config_of('preferences', 'file')
  config.data.update(path=str(tmp_path / 'mine.jsonl'), schema='graded', held_out=0.3)
  config.tests.update(path=str(tmp_path / 'theirs.jsonl'), schema='graded')
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


@pytest.mark.slow
def test_external_judges_are_compared(config_of, tmp_path, capsys):
  """The remote judge prefers the longer response, without a verdict if the left begins red."""
  pytest.importorskip('openai', reason='the remote judge needs the extra remote')
  write(tmp_path / 'mine.jsonl', prompts=20, answers=4)
  (tmp_path / 'pairrm').mkdir()
  published.save(tmp_path / 'pairrm', 'port')
  config = config_of('preferences', 'file')
  config.data.update(path=str(tmp_path / 'mine.jsonl'), schema='graded', held_out=0.3)
  config.judges, config.pairrm.hf = 'learned,lengths,pairrm,remote', str(tmp_path / 'pairrm')

  def behave(content, before):
    left, right = (text.partition(' - ')[2] for text in content.split('\n\n')[2:4])
    if left.startswith('red'):
      return faults.Reply(faults.completion('Hard to say.'))
    return faults.Reply(faults.completion('1' if len(left) > len(right) else '2'))

  with faults.serve(behave) as served:
    config.remote.update(url=served.url, model='m', key='', tolerated=1.0)
    experiment = make_experiment(config, 'p', tmp_path / 'stages')
    results = judges.run(experiment, tmp_path)
    sent = len(served.seen)
  corpus = experiment.first.corpus
  texts = judges.as_texts(corpus.read_comparisons(corpus.held_out))
  rows, cycles = results['sets']['held out'], results['transitivity']
  red = sum(left.startswith('red') for left in texts.left)
  assert 0 < red < len(texts.left)
  assert (rows['remote']['unusable'], rows['remote']['comparisons']) == (red, 36 - red)
  assert (rows['remote']['accuracy'], rows['remote']['consistency']) == (1, 1)
  assert rows['remote']['longer'] == 1
  assert (rows['lengths']['accuracy'], rows['lengths']['longer']) == (1, 1)
  assert (rows['lengths']['consistency'], cycles['lengths']['three_cycles']) == (1, 0)
  assert rows['pairrm']['comparisons'] == rows['preference model']['comparisons'] == 36
  forward, backward = (
    experiment.first.external['pairrm']().preference(texts.prompts, *sides)
    for sides in ((texts.left, texts.right), (texts.right, texts.left))
  )
  logit = (special.logit(forward) - special.logit(backward)) / 2
  probability = special.expit(logit)
  assert rows['pairrm']['log_loss'] == pytest.approx(
    judge_metrics.log_loss(probability, texts.votes), rel=1e-4
  )
  assert rows['pairrm']['first_place'] == pytest.approx(
    np.mean(forward + backward - 1) / 2, abs=1e-6
  )
  assert cycles['remote']['prompts'] == 6 - red // 6
  assert cycles['remote']['three_cycles'] == 0
  assert 0 < cycles['pairrm']['cyclic_energy'] < 1
  counts = results['external_judges']['remote']['counts']
  assert counts['asked'] == counts['requests'] == sent
  page, printed = (tmp_path / 'report.html').read_text(), capsys.readouterr().out
  for sentence in (
    f'The remote judge is m at {served.url}',
    'The lengths judge is the longer response.',
    'remote has no usable verdict on',
  ):
    assert sentence in page
    assert sentence in printed
  config.judges = 'pairrm'  # then no judge is trained
  alone = make_experiment(config, 'p', tmp_path / 'others')
  again = judges.run(alone, tmp_path / 'alone')
  assert again['judges'] == {}
  assert again['sets']['held out']['pairrm'] == rows['pairrm']
  assert not list((tmp_path / 'others').glob('*/stage.json'))


def test_seed_determines_the_initial_gpm(config_of, tmp_path):
  def points(seed):
    config = config_of('preferences')
    config.seed = seed
    network = make_judge_network(
      language_config.make_experiment(config, 'p', tmp_path), 'general_preference_model'
    )
    return network.init({})['verdict']

  np.testing.assert_array_equal(points(0), points(0))
  assert not np.allclose(points(0), points(1))


@pytest.mark.parametrize(
  ('section', 'changes', 'message'),
  [
    ('sizes', {'x': {'depth': 3}}, r"config\.sizes\.x: 'depth' is none of width, "),
    ('sizes', {}, r'config\.sizes is empty'),
    ('judges', 'learned,oracle', r"config\.judges='learned,oracle' must be some of learned, "),
    ('judges', 'learned,learned', "names 'learned' twice"),
    ('tests', {'path': 'none.jsonl'}, r"config\.tests\.path: cannot read 'none.jsonl'"),
    ('tests', {'path': 'x.jsonl', 'schema': 'own'}, r"config\.tests\.schema='own' is none of"),
    ('tests', {'path': 'x.jsonl', 'split': 'a,b'}, r"config\.tests\.split='a,b' names 2 for 1"),
  ],
)
def test_invalid_settings_are_refused(section, changes, message, config_of, tmp_path):
  config = config_of('preferences')
  if section == 'tests':
    config.tests.update(changes)
  else:
    config[section] = changes
  with pytest.raises(UserError, match=message):
    make_experiment(config, 'p', tmp_path)
