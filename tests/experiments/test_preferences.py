"""Judges of several kinds and sizes on the same comparisons, from a config to a page."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from nlhf_jax import records
from nlhf_jax.build.preferences import make_experiment
from nlhf_jax.data import synthetic
from nlhf_jax.errors import UserError
from nlhf_jax.experiments import preferences

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
  records.write(path, rows)


def test_three_kinds_in_two_sizes_and_what_reads_nothing(config_of, tmp_path, capsys):
  config = config_of('preferences')
  config.data.update(posts=256, held_out=64)
  config.sizes = {'small': {}, 'wide': {'width': 24}}
  run = lambda: preferences.run(make_experiment(config, 'p', tmp_path / 'stages'), tmp_path)
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
  assert results['transitivity'][judges[0]]['responses'] == len(synthetic.STYLES)
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
  results = preferences.run(make_experiment(config, 'p', tmp_path / 'stages'), tmp_path / 'run')
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


@pytest.mark.parametrize(
  ('section', 'changes', 'said'),
  [
    ('sizes', {'x': {'depth': 3}}, r"config\.sizes\.x: 'depth' is none of width, "),
    ('sizes', {}, r'config\.sizes is empty'),
    ('judges', 'learned,oracle', r"config\.judges='learned,oracle' must be some of learned, "),
    ('judges', 'learned,learned', 'must be some of'),
  ],
)
def test_mistakes_are_told_in_a_sentence(section, changes, said, config_of, tmp_path):
  config = config_of('preferences')
  config[section] = changes
  with pytest.raises(UserError, match=said):
    make_experiment(config, 'p', tmp_path)
