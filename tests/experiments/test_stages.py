"""A stage is found by the settings that determine it, and by no others."""

import importlib
from pathlib import Path

import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.experiments import stages
from nlhf_jax.experiments.language import run as language
from nlhf_jax.experiments.language.config import make_experiment
from nlhf_jax.storage import json_lines

ROOT = Path(__file__).parents[2]
EXPLOITERS = [
  (judge, entry)
  for judge in ('oracle', 'learned')
  for entry in ('sft', 'ema1', 'ema1_average', 'dpo')
]


@pytest.fixture
def config(toy, monkeypatch):
  """Two policies, one of which uses no judge, and exploiters."""
  monkeypatch.syspath_prepend(str(ROOT))
  whole = importlib.import_module('nlhf_jax.configs.comparison').get_config()
  for name in list(whole.policies):
    if name not in ('ema1', 'dpo'):
      del whole.policies[name]
  return toy(whole)


def folders(config, tmp_path):
  experiment = make_experiment(config, 'x', tmp_path)
  named = {name: stage.folder for name, stage in experiment.stages.items()}
  return named | {pair: stage.folder for pair, stage in experiment.exploiters.items()}


@pytest.mark.parametrize(
  ('field', 'value', 'kept'),
  [
    ('tournament.prompts', 4, ('sft', 'preference_model', 'ema1', 'dpo', *EXPLOITERS)),
    ('exploiter.steps', 3, ('sft', 'preference_model', 'ema1', 'dpo', 'tournament')),
    (
      'policies.ema1.entries',
      'policy',
      ('sft', 'preference_model', 'ema1', 'dpo', ('oracle', 'dpo')),
    ),
    ('policies.dpo.steps', 3, ('sft', 'preference_model', 'ema1', ('learned', 'ema1'))),
    ('preference_model.steps', 3, ('sft', 'dpo', ('oracle', 'sft'), ('oracle', 'dpo'))),
    ('sft.steps', 3, ()),
    ('seed', 1, ()),
  ],
)
def test_stage_changes_with_what_it_builds_on(config, tmp_path, field, value, kept):
  before = folders(config, tmp_path)
  assert len(set(before.values())) == len(before) == 5 + 2 * 4
  config.update_from_flattened_dict({field: value})
  after = folders(config, tmp_path)
  found = {name for name in after if after[name] == before.get(name)}
  assert set(kept) <= found
  # The tournament is new wherever its entries or judges changed.
  assert 'tournament' not in found or 'tournament' in kept
  if field in (
    'tournament.prompts',
    'exploiter.steps',
    'preference_model.steps',
    'sft.steps',
    'seed',
  ):
    assert found == set(kept)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('model.remat', 'layers'),
    *[
      (f'{row}.{name}', value)
      for row in ('sft', 'preference_model', 'policies.ema1', 'exploiter')
      for name, value in (
        ('accumulate', 2),
        ('checkpoint_minutes', 1.0),
        ('evaluate_every', 1),
        ('missing_verdicts', 0.1),
        ('on_divergence', 'skip'),
      )
    ],
  ],
)
def test_settings_that_change_no_number_find_all_stages(config, tmp_path, field, value):
  before = make_experiment(config, 'x', tmp_path)
  config.update_from_flattened_dict({field: value})
  after = make_experiment(config, 'x', tmp_path)
  for one, other in ((before.stages, after.stages), (before.exploiters, after.exploiters)):
    assert {name: stage.folder for name, stage in one.items()} == {
      name: stage.folder for name, stage in other.items()
    }
  assert before.exploiter_wins == after.exploiter_wins


def test_settings_that_differ_are_printed(config, tmp_path, capsys):
  stage = make_experiment(config, 'x', tmp_path).stages['ema1']
  with stages.work_on(stage):
    pass
  config.policies.ema1.evaluate_every = 1
  stage = make_experiment(config, 'x', tmp_path).stages['ema1']
  stages.print_status(stage)
  printed = capsys.readouterr().out
  assert f'ema1: found in {stage.folder}' in printed
  assert 'started with policy.evaluate_every=2, now 1, which determines no result' in printed


def test_tournament_measures_exploiters_anew(config, tmp_path):
  before = make_experiment(config, 'x', tmp_path).exploiter_wins
  config.tournament.prompts = 4
  assert make_experiment(config, 'x', tmp_path).exploiter_wins != before


def test_entries_to_exploit_are_chosen(config, tmp_path):
  every = make_experiment(config, 'x', tmp_path).exploiters
  config.exploiter.exploited = 'dpo, sft'
  some = make_experiment(config, 'x', tmp_path).exploiters
  assert {entry for _, entry in some} == {'dpo', 'sft'}
  assert all(stage.folder == every[pair].folder for pair, stage in some.items())
  config.exploiter.exploited = 'dpo, best'
  with pytest.raises(UserError, match="there is no entry 'best'; name some of sft, ema1"):
    make_experiment(config, 'x', tmp_path)


@pytest.mark.slow
def test_exploiters_are_trained_once_and_fully_measured(config, toy_run, tmp_path, capsys):
  toy_run.copy_to(tmp_path)  # with the SFT model and the judge
  run = lambda: language.run(make_experiment(config, 'x', tmp_path / 'stages'), tmp_path)
  first = run()
  wins = sorted((tmp_path / 'stages').glob('exploiter-*/wins-*.json'))
  assert len(wins) == 2 * 4
  for path in wins:
    record = json_lines.read_json(path)
    found = first['exploitability'][record['player']][record['trained_by']]
    for judge in ('oracle', 'learned'):
      assert len(record[judge]) == config.tournament.prompts
      assert found[judge]['win_rate'] == pytest.approx(sum(record[judge]) / len(record[judge]))
  stamps = {path: path.stat().st_mtime_ns for path in wins[1:]}
  wins[0].unlink()  # as if killed before it was measured
  assert run() == first
  assert wins[0].exists()
  assert {path: path.stat().st_mtime_ns for path in wins[1:]} == stamps
  assert 'Win rate of an exploiter' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('field', 'value', 'complaint'),
  [
    ('policies.ema1.judge', 'reward', "judge='reward' cannot train 'nash_ema_pg'"),
    ('policies.ema1.entries', 'policy,magnet', "'magnet' is not a slot"),
    ('policies.ema1.arguments.tau', -1.0, 'tau=-1.0 must be at least 0'),
  ],
)
def test_incompatible_settings_are_refused(config, tmp_path, field, value, complaint):
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=complaint.replace('(', r'\(')):
    make_experiment(config, 'x', tmp_path)


def test_entries_with_one_name_are_refused(config, tmp_path):
  config.policies.ema1_average = config.policies.dpo
  with pytest.raises(UserError, match="two entries would be named 'ema1_average'"):
    make_experiment(config, 'x', tmp_path)
