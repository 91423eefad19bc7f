"""The judge `lengths`, which prefers the longer response, in training and in tournaments."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from nlhf_jax.experiments.language import run as language
from nlhf_jax.experiments.language.config import make_experiment
from nlhf_jax.experiments.start import start
from nlhf_jax.judges.lengths import prefer_longer
from nlhf_jax.storage import json_lines

ROOT = Path(__file__).parents[2]


def expected_win_rate(rows, one, other):
  """The share of prompts on which the text of `one` is longer; half of the ties."""
  lengths = [[len(row['responses'][name]) for name in (one, other)] for row in rows]
  return np.mean([0.5 + np.sign(left - right) / 2 for left, right in lengths])


def test_more_characters_win_and_equally_many_tie():
  probability = prefer_longer(['p'] * 4, ['aa', 'a', 'ab', ''], ['b', 'äö', 'cd', ''])
  np.testing.assert_array_equal(probability, [1, 0, 0.5, 0.5])


@pytest.mark.slow
def test_policy_and_tournament_use_lengths(toy, tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT))
  config = toy(importlib.import_module('nlhf_jax.configs.sppo').get_config())
  config.policies.sppo.judge = config.judges = 'lengths'
  results = language.run(make_experiment(config, 'sppo', tmp_path / 'stages'), tmp_path)
  assert results['tables'].keys() == {'oracle', 'lengths'}
  rows = json_lines.read(tmp_path / 'samples.jsonl')
  win_rate = results['tables']['lengths']['win_rate']
  assert win_rate[1][0] == pytest.approx(expected_win_rate(rows, 'sppo', 'sft'))
  logged = [row for row in json_lines.read(tmp_path / 'metrics.jsonl') if row['stage'] == 'sppo']
  assert 'win_rate_against_reference_by_lengths' in logged[-1]
  assert not list((tmp_path / 'stages').glob('preference_model*/stage.json'))  # nothing to train


def test_evaluate_uses_lengths(toy, tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT))
  texts = [('long', 's'), ('same', 'size'), ('a', 'longer'), ('xyz', 'x')]
  rows = [
    {'prompt': f'p{number}', 'responses': {'one': one, 'other': other}}
    for number, (one, other) in enumerate(texts)
  ]
  json_lines.write(tmp_path / 'two.jsonl', rows)
  config = toy(importlib.import_module('nlhf_jax.configs.evaluate').get_config())
  config.entries, config.judges = str(tmp_path / 'two.jsonl'), 'lengths'
  start(config, 'evaluate', tmp_path / 'run', tmp_path / 'stages')
  results = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert results['tables']['lengths']['win_rate'][0][1] == 2.5 / 4
  assert results['order_consistency']['lengths'] == {'consistency': 1, 'first_place': 0}
