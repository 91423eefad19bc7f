"""The experiments that learn games of a few actions from votes."""

import numpy as np
from ml_collections import ConfigDict

from nlhf_jax.errors import UserError
from nlhf_jax.experiments import ranges
from nlhf_jax.experiments.names import functions
from nlhf_jax.experiments.specs import Measurement, SampleComplexityExperiment
from nlhf_jax.experiments.tabular.config import call, numbers
from nlhf_jax.sample_complexity import links, worlds
from nlhf_jax.sample_complexity.links import Link
from nlhf_jax.sample_complexity.setting import one_prompt
from nlhf_jax.sample_complexity.worlds import World, skewed


def make_experiment(config: ConfigDict) -> SampleComplexityExperiment:
  """The experiment that a config describes; in double precision, if JAX has it enabled.

  Raises:
    UserError: if a setting cannot be used.
  """
  ranges.check(config)
  link = call(functions(links, Link), config.payoff, {}, 'config.payoff', 'config.payoff')
  parts = {
    field: make_part(config[field], f'config.{field}')
    for field in ('rates', 'offline', 'online', 'rewards')
  }
  if config.rewards.world.name != 'bradley_terry':
    raise UserError(
      f"config.rewards.world.name='{config.rewards.world.name}' must be bradley_terry: only there "
      'is a reward.'
    )
  return SampleComplexityExperiment(config.payoff, link, config.seed, config.seeds, **parts)


def make_part(settings: ConfigDict, field: str) -> Measurement:
  """One of the measurements."""
  arguments = settings.to_dict()
  described = arguments.pop('world')
  name = described.pop('name')
  known = functions(worlds, World)
  for size, least in (('actions', 2), ('rank', 2)):
    if described.get(size, least) < least:
      raise UserError(f'{field}.world.{size}={described[size]} must be at least {least}.')
  if not np.isfinite(arguments['reference']):
    raise UserError(f'{field}.reference={arguments["reference"]} must be finite.')
  world = call(known, name, described, f'{field}.world.name', f'{field}.world')
  log_reference = skewed(described['actions'], arguments.pop('reference'))
  taus = positive(arguments.pop('taus'), f'{field}.taus')
  votes = None
  if 'votes' in arguments:
    votes = np.array(positive(arguments.pop('votes'), f'{field}.votes'))
    if (np.diff(votes) <= 0).any() or votes[0] < 1:
      raise UserError(f"{field}.votes='{settings.votes}' must increase, from 1 on.")
  others = positive(arguments.pop('others'), f'{field}.others') if 'others' in arguments else []
  by_tau = {tau: one_prompt(log_reference, tau) for tau in taus}
  return Measurement(name, world, by_tau, votes, others, arguments)


def positive(text: str, field: str) -> list[float]:
  """Numbers above 0, separated by commas."""
  found = numbers(text, field)
  if not all(0 < number < np.inf for number in found):
    raise UserError(f"{field}='{text}' must be finite numbers above 0.")
  return found
