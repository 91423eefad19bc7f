"""Law: every config that trains runs from its first stage to its report at toy size."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from nlhf_jax import command
from nlhf_jax.evaluation import tournament
from nlhf_jax.experiments.language import run as language
from nlhf_jax.experiments.language.config import make_experiment
from nlhf_jax.storage import json_lines
from nlhf_jax.tasks.summaries import styles

CONFIGS = sorted(
  path.stem
  for path in Path(__file__).parents[1].glob('configs/*.py')
  if path.stem != 'base' and command.load_config(str(path)).experiment == 'language'
)
OUTCOME = ('results.json', 'samples.jsonl', 'metrics.jsonl', 'report.html')


def run(config, name, folder, stages=None):
  language.run(make_experiment(config, name, stages or folder / 'stages'), folder)


@pytest.fixture(scope='session')
def common(tmp_path_factory):
  """Where configs find the SFT model and the judges of those before."""
  return tmp_path_factory.mktemp('stages')


@pytest.fixture
def config_of(toy, monkeypatch):
  monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
  return lambda name, *source: toy(importlib.import_module(f'configs.{name}').get_config(*source))


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_runs_to_its_report(name, config_of, common, tmp_path):
  config = config_of(name)
  for policy in list(config.policies)[3:]:  # the rows of the comparison have configs of their own
    if policy not in ('ema1', 'sp_oracle'):
      del config.policies[policy]
  run(config, name, tmp_path, common)
  results = json.loads((tmp_path / 'results.json').read_text())
  names = [
    policy if slot.strip() == 'policy' else f'{policy}_{slot.strip()}'
    for policy, row in config.policies.items()
    for slot in row.entries.split(',')
  ]
  assert results['policies'] == ['sft', *names]
  assert results['tables'].keys() == {'oracle', 'learned'}
  assert results['kl_to_reference']['sft'] == pytest.approx(0, abs=1e-5)
  logged = {record['stage'] for record in json_lines.read(tmp_path / 'metrics.jsonl')}
  asked = {'reward_model'} if 'reward' in {row.judge for row in config.policies.values()} else set()
  assert logged == {'sft', 'preference_model', *asked, *config.policies}
  for row in config.policies.values():
    assert row.steps == 2
  if config.exploiter:
    assert results['exploitability'].keys() == {'sft', *names}


def test_what_is_set_in_one_config_is_not_set_in_the_next():
  make = importlib.import_module('configs.sppo').get_config
  make().policies.sppo.judge = 'oracle'
  assert make().policies.sppo.judge == 'learned'


def test_every_number_of_the_results_is_a_mean_over_the_samples(config_of, tmp_path):
  run(config_of('nash_md'), 'nash_md', tmp_path)
  samples = json_lines.read(tmp_path / 'samples.jsonl')
  results = json.loads((tmp_path / 'results.json').read_text())
  assert results == tournament.summarise(samples) | {'task': styles.summarise(samples)}
  for judge, table in results['tables'].items():
    mean = np.mean([sample['preferences'][judge] for sample in samples], axis=0)
    np.testing.assert_allclose(table['win_rate'], mean, atol=1e-12)


def test_running_again_changes_nothing(config_of, tmp_path):
  run(config_of('nash_md'), 'nash_md', tmp_path)
  files = [path for path in tmp_path.rglob('*') if path.is_file() and path.suffix != '.html']
  before = {path: path.read_bytes() for path in files}
  run(config_of('nash_md'), 'nash_md', tmp_path)
  assert {path for path in tmp_path.rglob('*') if path.is_file() and path.suffix != '.html'} == set(
    files
  )
  assert {path: path.read_bytes() for path in files} == before


def test_own_comparisons_run_to_a_report_without_an_oracle(config_of, tmp_path, capsys):
  path = tmp_path / 'mine.jsonl'
  lines = [
    {'prompt': f'say {number}', 'chosen': f'{number} it is', 'rejected': 'no'}
    for number in range(12)
  ]
  json_lines.write(path, lines)
  config = config_of('nash_md', 'file')
  config.data.path = str(path)
  run(config, 'nash_md', tmp_path)
  results = json.loads((tmp_path / 'results.json').read_text())
  assert results['tables'].keys() == {'learned'}
  assert 'No oracle' in capsys.readouterr().out
