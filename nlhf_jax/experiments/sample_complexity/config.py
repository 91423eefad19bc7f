"""The config of the experiments that learn games over a few actions from votes."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nlhf_jax.errors import UserError
from nlhf_jax.experiments import sections
from nlhf_jax.experiments.game_specs import Measurement, SampleComplexityExperiment
from nlhf_jax.experiments.memory_limits import check_table
from nlhf_jax.experiments.sections import Section, call_by_name, factories, parse_numbers
from nlhf_jax.ranges import Finite
from nlhf_jax.sample_complexity import links, protocols, worlds
from nlhf_jax.sample_complexity.links import Link
from nlhf_jax.sample_complexity.setting import single_prompt
from nlhf_jax.sample_complexity.worlds import World, geometric_reference

LINKS = factories(links, Link)
WORLDS = factories(worlds, World)
PROTOCOLS = {'offline': protocols.learn_offline, 'online': protocols.learn_online}
PARTS = ('rates', 'offline', 'online', 'rewards')


class PartSettings(NamedTuple):
  """The slope of the reference: every action is e^-reference times as likely as the one before."""

  reference: Finite


def make_experiment(
  config: ConfigDict, name: str, folder: Path | None = None
) -> SampleComplexityExperiment:
  """Makes the experiment of a config; in double precision, if JAX has it enabled.

  It has no stages to keep in `folder`.

  Raises:
    UserError: if a setting cannot be used.
  """
  del folder
  sections.check(sample_complexity_sections(config))
  link = call_by_name(LINKS, config.payoff, {}, 'config.payoff', 'config.payoff')
  parts = {field: make_part(config[field], f'config.{field}') for field in PARTS}
  if config.rewards.world.name != 'bradley_terry':
    raise UserError(
      f"config.rewards.world.name='{config.rewards.world.name}' must be bradley_terry: only this "
      'world has a reward.'
    )
  return SampleComplexityExperiment(name, config.payoff, link, config.seed, config.seeds, **parts)


def sample_complexity_sections(config: ConfigDict) -> Iterator[Section]:
  """The sections of a config of this kind, with the declarations of their ranges."""
  yield Section(SampleComplexityExperiment, config, 'config')
  for part in PARTS:
    section, field = config[part], f'config.{part}'
    yield Section(PartSettings, section, field)
    if part in PROTOCOLS:
      yield Section(PROTOCOLS[part], section, field)
    if section.world.name in WORLDS:
      yield Section(WORLDS[section.world.name], section.world, f'{field}.world')


def make_part(settings: ConfigDict, field: str) -> Measurement:
  """The measurement of one section, called `field`."""
  arguments = settings.to_dict()
  described = arguments.pop('world')
  name = described.pop('name')
  check_table(described['actions'], described.get('count', 1), f'{field}.world: actions, count')
  world = call_by_name(WORLDS, name, described, f'{field}.world.name', f'{field}.world')
  log_reference = geometric_reference(described['actions'], arguments.pop('reference'))
  taus = parse_positive(arguments.pop('taus'), f'{field}.taus')
  votes = None
  if 'votes' in arguments:
    votes = np.array(parse_positive(arguments.pop('votes'), f'{field}.votes'))
    if (np.diff(votes) <= 0).any() or votes[0] < 1:
      raise UserError(f"{field}.votes='{settings.votes}' must increase, from 1 on.")
  others = (
    parse_positive(arguments.pop('others'), f'{field}.others') if 'others' in arguments else []
  )
  by_tau = {tau: single_prompt(log_reference, tau) for tau in taus}
  return Measurement(name, world, by_tau, votes, others, arguments)


def parse_positive(text: str, field: str) -> list[float]:
  """Numbers above 0, separated by commas."""
  found = parse_numbers(text, field)
  if not all(0 < number < np.inf for number in found):
    raise UserError(f"{field}='{text}' must be finite numbers above 0.")
  return found
