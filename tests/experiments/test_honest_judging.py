"""A judge that only evaluates, on prompts that nothing else learns from; and cut responses."""

import json

import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.experiments.language.config import make_experiment
from nlhf_jax.experiments.language.run import run
from nlhf_jax.storage import json_lines


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  path = tmp_path_factory.mktemp('data') / 'mine.jsonl'
  json_lines.write(
    path,
    [
      {'prompt': f'say {number}', 'chosen': f'{number} it is', 'rejected': 'no'}
      for number in range(24)
    ],
  )
  return path


@pytest.fixture
def config(config_named, data):
  config = config_named('nash_md', 'file')
  config.data.path = str(data)
  config.held_apart, config.unfinished, config.curves.prompts = 'gpm', 'loses', 2
  del config.policies['self_play']
  return config


def prompts_of(examples):
  return {tuple(row[row > 0]) for row in np.asarray(examples.all().prompts.tokens)}


def test_held_apart_judge_learns_from_prompts_of_its_own(config, tmp_path):
  experiment = make_experiment(config, 'apart', tmp_path)
  apart, corpus = experiment.held_apart, experiment.corpus
  assert experiment.panel == ['learned', 'held_apart']
  assert apart.kind == 'general_preference_model'
  own = prompts_of(apart.comparisons)
  others = prompts_of(corpus.train.comparisons)
  tested = {tuple(row[row > 0]) for row in np.asarray(corpus.held_out.prompts.tokens)}
  assert len(own) > 8 < len(others)
  assert not own & (others | tested)


def test_parts_of_parts_are_disjoint(config, tmp_path):
  config.data.part = '2/2'
  config.data.held_out = 0.3
  experiment = make_experiment(config, 'apart', tmp_path)
  config.held_apart, config.data.part = '', '1/2'
  other = make_experiment(config, 'whole', tmp_path)
  whole = prompts_of(other.corpus.train.comparisons)
  assert not whole & prompts_of(experiment.held_apart.comparisons)
  assert not whole & prompts_of(experiment.corpus.train.comparisons)


def test_the_report_has_both_judges_and_the_share_of_cut_responses(config, tmp_path, capsys):
  run(make_experiment(config, 'apart', tmp_path / 'stages'), tmp_path)
  results = json.loads((tmp_path / 'results.json').read_text())
  assert results['tables'].keys() == {'learned', 'held_apart'}
  curves = json_lines.read(tmp_path / 'metrics.jsonl')
  assert {'preference_model', 'held_apart', 'nash_md'} <= {record['stage'] for record in curves}
  of_policy = [record for record in curves if record['stage'] == 'nash_md']
  for judge in ('learned', 'held_apart'):
    assert f'win_rate_against_reference_by_{judge}' in of_policy[-1]
    assert results['equal_length'][judge].keys() == {'nash_md'}
  assert 0 <= of_policy[-1]['unfinished'] <= 1
  samples = json_lines.read(tmp_path / 'samples.jsonl')
  assert results['unfinished']['sft'] == np.mean([line['cut']['sft'] for line in samples])
  for line in samples:
    ended, cut = line['cut']['sft'], line['cut']['nash_md']
    for matrix in line['preferences'].values():
      assert ended == cut or matrix[0][1] == (0.0 if ended else 1.0)
  assert 'The held apart agrees with' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'held_apart': 'oracle'},
      "config.held_apart='oracle' must be empty or one of learned, reward",
    ),
    ({'unfinished': 'wins'}, "config.unfinished='wins' must be one of judged, loses"),
    ({'curves.prompts': 0}, 'config.curves.prompts=0 must be at least 1'),
    (
      {'policies.nash_md.judge': 'held_apart'},
      "config.policies.nash_md.judge='held_apart' must be",
    ),
  ],
)
def test_wrong_settings_are_refused(changes, message, config, tmp_path):
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError) as caught:
    make_experiment(config, 'apart', tmp_path)
  assert message in str(caught.value)


def test_the_embedded_task_has_its_oracle(config_named, tmp_path):
  config = config_named('nash_md')
  config.held_apart = 'gpm'
  with pytest.raises(UserError, match='the embedded task has its oracle for this'):
    make_experiment(config, 'apart', tmp_path)
