"""Filters of the samples that a policy trains on: what is refused, printed, and part of a stage."""

import shutil

import pytest

from nlhf_jax import command, configs
from nlhf_jax.algorithms.algorithm import samples_responses
from nlhf_jax.algorithms.catalogue import ALGORITHMS
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.language.config import make_panel, make_policies
from nlhf_jax.experiments.language.stage_settings import stage_settings
from nlhf_jax.experiments.sampling_config import print_filtered
from nlhf_jax.experiments.start import start
from nlhf_jax.sampling.token import Filters
from nlhf_jax.storage import json_lines


def with_filters(name, policy, **changes):
  config = command.load_config(name).copy_and_resolve_references()
  config.policies[policy].filters.update(changes)
  return config


@pytest.mark.parametrize(
  ('name', 'policy', 'changes', 'message'),
  [
    ('nash_md', 'nash_md', {'top_p': 0.9}, r"top_p=0\.9: 'nash_md_pg' learns from its samples"),
    ('nash_md', 'self_play', {'top_k': 50}, r"top_k=50: 'self_play' learns from its samples"),
    ('sppo', 'sppo', {'temperature': 0.7, 'top_p': 0.9}, 'would depend on the start; leave top_k'),
    ('spin', 'spin', {'top_p': 0.9}, 'would depend on the start; leave top_k at 0 and top_p at 1'),
    ('rso', 'rso', {'top_k': 5}, 'would depend on the start'),
    ('dpo', 'dpo', {'temperature': 0.7}, r"temperature=0\.7: 'dpo' trains on data, and samples"),
    ('kto', 'kto', {'top_p': 0.9}, r"top_p=0\.9: 'kto' trains on data, and samples nothing"),
    ('egpo', 'egpo', {'temperature': 0.7}, r'set config\.policies\.egpo\.arguments\.temperature'),
    ('sppo_tempered', 'sppo_tempered', {'temperature': 0.7}, 'has a temperature of its own'),
  ],
)
def test_filters_that_move_the_fixed_point_are_refused(name, policy, changes, message):
  with pytest.raises(UserError, match=message) as refused:
    make_policies(with_filters(name, policy, **changes))
  assert str(refused.value).startswith(f'config.policies.{policy}.filters.')


@pytest.mark.parametrize(
  ('name', 'policy', 'changes', 'printed'),
  [
    ('nash_md', 'nash_md', {}, ''),
    (
      'nash_md',
      'nash_md',
      {'temperature': 0.7},
      'the fixed point of the algorithm is reached by the tempered policy, so compare it at '
      'config.tournament.filters.temperature=0.7.\n',
    ),
    (
      'sppo_tempered',
      'sppo_tempered',
      {'top_p': 0.9},
      "'sppo_tempered' never samples what top_k=0 and top_p=0.9 leave out; its samples, and not "
      'the policy, end at the lottery of the other responses, which depend on the start.\n',
    ),
  ],
)
def test_filters_say_where_training_ends(name, policy, changes, printed, capsys):
  policies = make_policies(with_filters(name, policy, **changes))
  assert policies[policy].filters == Filters(**changes)
  print_filtered(policies)
  found = capsys.readouterr().out
  assert found.endswith(printed)
  assert found.count('\n') == len(changes)


def test_only_other_filters_are_part_of_a_stage():
  """Stages of runs before there were filters are found."""

  def settings(**changes):
    config = with_filters('nash_md', 'nash_md', **changes)
    return stage_settings(config, make_policies(config), make_panel(config))

  plain, tempered = settings(), settings(temperature=0.7)
  assert 'filters' not in plain['nash_md']['policy']
  assert tempered['nash_md']['policy'].pop('filters')['temperature'] == 0.7
  assert tempered['nash_md'] == plain['nash_md']
  assert tempered['self_play'] == plain['self_play']


def test_algorithms_without_samples_are_those_that_train_on_data():
  idle = {'dpo', 'cdpo', 'robust_dpo', 'ipo', 'ipo_per_token', 'chi_po', 'slic', 'kto', 'simpo'}
  idle |= {'rpo_squared', 'rpo_backward', 'rpo_forward', 'apo_zero', 'apo_down', 'orpo', 'cpo'}
  trained = {}
  for name in configs.names():
    for row in command.load_config(name).get('policies', {}).values():
      trained[row.algorithm] = ALGORITHMS[row.algorithm](**row.arguments)
  assert {name for name, made in trained.items() if not samples_responses(made)} == idle
  assert [name for name, made in trained.items() if made.truncated] == ['sppo_tempered']


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'changes'), [('nash_md', {'temperature': 0.7}), ('sppo_tempered', {'top_p': 0.9})]
)
def test_policies_train_with_filters(name, changes, config_named, toy_run, tmp_path):
  config = config_named(name)
  config.policies[name].filters.update(changes)
  shutil.copytree(toy_run.folder / 'stages', tmp_path / 'stages')
  start(config, name, tmp_path / 'run', tmp_path / 'stages')
  results = json_lines.read_json(tmp_path / 'run' / 'results.json')
  assert 0 < abs(results['kl_to_reference'][name]) < 5
  (plain,) = (toy_run.folder / 'stages').glob('nash_md-*')
  assert (tmp_path / 'stages' / plain.name).is_dir()
  assert len(list((tmp_path / 'stages').glob(f'{name}-*'))) == (2 if name == 'nash_md' else 1)
