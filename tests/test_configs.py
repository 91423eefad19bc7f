"""Law: every config that trains runs from its first stage to its report at toy size.

The quick tier runs `WHOLE`, in which every kind of side, loss, reference rule and step occurs, and
reads the others; the slow tier runs those, too.
"""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from nlhf_jax import command
from nlhf_jax.algorithms.described import describe
from nlhf_jax.evaluation import tournament
from nlhf_jax.experiments.language import run as language
from nlhf_jax.experiments.language.config import make_experiment
from nlhf_jax.storage import json_lines
from nlhf_jax.tasks.summaries import styles
from tests import described_runs

CONFIGS = sorted(
  path.stem
  for path in Path(__file__).parents[1].glob('configs/*.py')
  if path.stem not in ('base', 'smollm2')
  and command.load_config(str(path)).experiment == 'language'
)
WHOLE = (
  'nash_md',  # the policy against a mixture, by policy gradient, with a frozen reference
  'dpo',  # comparisons, by their log-odds
  'kto',  # comparisons one response at a time, by a loss of the whole batch
  'spin',  # demonstrations against a snapshot
  'sppo',  # several samples of a snapshot against each other, by regression
  'sppo_tempered',  # tempered samples of a snapshot
  'egpo',  # tempered samples, two half-steps, and a reference that follows the policy
  'nash_ema',  # an average, which enters the tournament as well
  'mnpo',  # a history of snapshots, by a squared margin
  'rso_hinge',  # several samples of the reference, by a hinge
  'xpo',  # a sum of losses
  'rlhf',  # a reward model
)

# Losses that read and return what another one does; their formulas have tests of their own.
LIKE_OTHERS = {
  'forward_preference': 'pairwise_loss(softplus',
  'anchored_zero': 'pairwise_loss(softplus',
  'anchored_down': 'pairwise_loss(softplus',
  'clipped_policy_gradient': 'policy_gradient',
}


def run(config, name, folder, stages=None):
  language.run(make_experiment(config, name, stages or folder / 'stages'), folder)


def shortened(config):
  """Few policies: those of the comparison have configs of their own."""
  for policy in list(config.policies)[3:]:
    if policy not in ('ema1', 'sp_oracle'):
      del config.policies[policy]
  return config


@pytest.fixture(scope='module')
def common(toy_run, tmp_path_factory):
  """Stages that configs find: the SFT model and the judges of those before."""
  return toy_run.copy_to(tmp_path_factory.mktemp('common'))[1] / 'stages'


def kinds(algorithm):
  """What an algorithm is made of: kinds of sides, loss, reference rules and step."""

  def name(function):
    return function.__name__.partition('(')[0]

  def of_mixture(weights):
    if len(weights) > 1:
      return 'mixture'
    ((slot, weight),) = weights.items()
    rule = 'policy' if slot == 'policy' else algorithm.references[slot].kind
    return rule if weight == 1 else f'{rule}, tempered'

  found = {f'step: {name(algorithm.step)}'}
  for side in (algorithm.left, algorithm.right):
    found |= (
      {f'side: {side}'} if isinstance(side, str) else {f'side: {of_mixture(x)}' for x in side}
    )
  # A loss of pairs by its link: `name(link, ...)`.
  loss = re.match(r'[a-z_]+([(][a-z_]+(?=,))?', describe(algorithm.loss))[0]
  found.add(f'loss: {LIKE_OTHERS.get(loss, loss)}')
  return found | {f'reference: {rule.kind}' for rule in algorithm.references.values()}


def test_whole_runs_cover_every_kind_of_algorithm(config_named, tmp_path):
  def kinds_of(name):
    config = shortened(config_named(name))
    policies = make_experiment(config, name, tmp_path).policies
    return set().union(*(kinds(policy.training.algorithm) for policy in policies.values()))

  found = {name: kinds_of(name) for name in CONFIGS}
  covered = set().union(*(found[name] for name in WHOLE))
  assert {name: kinds - covered for name, kinds in found.items() if kinds - covered} == {}


@pytest.mark.parametrize(
  'name', [pytest.param(name, marks=() if name in WHOLE else pytest.mark.slow) for name in CONFIGS]
)
def test_every_config_runs_to_its_report(name, config_named, common, toy_run, tmp_path):
  config = shortened(config_named(name))
  workdir = toy_run.folder / 'run' if name == 'nash_md' else tmp_path
  if name != 'nash_md':
    run(config, name, workdir, common)
  assert described_runs.undescribed(workdir, 'language') == set()
  results = json.loads((workdir / 'results.json').read_text())
  names = [
    policy if slot.strip() == 'policy' else f'{policy}_{slot.strip()}'
    for policy, row in config.policies.items()
    for slot in row.entries.split(',')
  ]
  assert results['policies'] == ['sft', *names]
  assert results['tables'].keys() == {'oracle', 'learned'}
  assert results['kl_to_reference']['sft'] == pytest.approx(0, abs=1e-5)
  logged = {record['stage'] for record in json_lines.read(workdir / 'metrics.jsonl')}
  asked = {'reward_model'} if 'reward' in {row.judge for row in config.policies.values()} else set()
  assert logged == {'sft', 'preference_model', *asked, *config.policies}
  for row in config.policies.values():
    assert row.steps == 2
  if config.exploiter:
    assert results['exploitability'].keys() == {'sft', *names}


def test_configs_do_not_share_settings():
  make = importlib.import_module('nlhf_jax.configs.sppo').get_config
  make().policies.sppo.judge = 'oracle'
  assert make().policies.sppo.judge == 'learned'


def test_every_result_is_a_mean_over_samples(toy_run):
  samples = json_lines.read(toy_run.folder / 'run' / 'samples.jsonl')
  results = json.loads((toy_run.folder / 'run' / 'results.json').read_text())
  assert results == tournament.summarise(samples) | {'task': styles.summarise(samples)}
  for judge, table in results['tables'].items():
    mean = np.mean([sample['preferences'][judge] for sample in samples], axis=0)
    np.testing.assert_allclose(table['win_rate'], mean, atol=1e-12)


def test_running_again_changes_nothing(toy_run, tmp_path):
  config, folder = toy_run.copy_to(tmp_path)

  def files():
    found = [path for path in folder.rglob('*') if path.is_file() and path.suffix != '.html']
    return {path: path.read_bytes() for path in found}

  before = files()
  run(config, 'nash_md', folder / 'run', folder / 'stages')
  assert files() == before


def test_own_comparisons_give_a_report_without_oracle(config_named, tmp_path, capsys):
  path = tmp_path / 'mine.jsonl'
  lines = [
    {'prompt': f'say {number}', 'chosen': f'{number} it is', 'rejected': 'no'}
    for number in range(12)
  ]
  json_lines.write(path, lines)
  config = config_named('nash_md', 'file')
  config.data.path = str(path)
  run(config, 'nash_md', tmp_path)
  results = json.loads((tmp_path / 'results.json').read_text())
  assert results['tables'].keys() == {'learned'}
  assert 'No oracle' in capsys.readouterr().out
