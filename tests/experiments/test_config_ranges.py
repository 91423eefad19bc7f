"""Every number of every config has a declared range, and is refused outside of it."""

import contextlib
import inspect
import math
import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from nlhf_jax import command, ranges
from nlhf_jax.algorithms.catalogue import ALGORITHMS
from nlhf_jax.errors import UserError
from nlhf_jax.experiments import sections
from tests.documented_commands import SECTIONS

FOLDER = Path(__file__).parents[2] / 'configs'
VALUES = (-1, 0, math.nan, math.inf)


def variants(path):
  """A config with every game, world or kind of data that its `get_config` can be called with."""
  loaded = runpy.run_path(str(path))
  names = loaded.get('GAMES', loaded.get('WORLDS', ()))
  if path.stem in ('nash_md', 'evaluate', 'preferences'):
    names = ('synthetic', 'file')
  return [f'{path}:{name}' for name in names] or [str(path)]


CONFIGS = [
  name for path in sorted(FOLDER.glob('*.py')) if path.stem != 'base' for name in variants(path)
]


def numbers(section, field='config'):
  """(section, name, field of the section) of every number in a config."""
  for name, value in section.items():
    if isinstance(value, ConfigDict):
      yield from numbers(value, f'{field}.{name}')
    elif isinstance(value, int | float) and not isinstance(value, bool):
      yield section, name, field


def declared_ranges(config):
  """Full field -> its ranges."""
  found = {}
  for section in SECTIONS[config.experiment](config):
    for name, allowed in ranges.declared(section.declaration).items():
      found.setdefault(f'{section.field}.{name}', []).append(allowed)
  return found


@pytest.mark.parametrize('name', CONFIGS, ids=lambda name: Path(name).name)
def test_numbers_outside_their_range_are_refused(name):
  config = command.load_config(name).copy_and_resolve_references()
  find = SECTIONS[config.experiment]
  sections.check(find(config))
  declared = declared_ranges(config)
  for section, leaf, field in list(numbers(config)):
    full, before = f'{field}.{leaf}', section[leaf]
    assert full in declared, f'{full} has no declared range'
    for value in VALUES:
      with section.ignore_type():
        section[leaf] = value
      if all(allowed.contains(value) for allowed in declared[full]):
        sections.check(find(config))
      else:
        with pytest.raises(UserError) as refused:
          sections.check(find(config))
        assert str(refused.value).startswith(f'{full}={section[leaf]} must be ')
      with section.ignore_type():
        section[leaf] = before


def test_no_range_of_a_number_contains_nan():
  declared = [it for it in vars(ranges).values() if isinstance(it, ranges.Range)]
  assert len(declared) > 8
  assert not any(allowed.contains(math.nan) for allowed in declared)


@pytest.mark.parametrize('name', ALGORITHMS)
def test_every_argument_of_an_algorithm_declares_its_range(name):
  declared = ranges.declared(ALGORITHMS[name])
  assert list(declared) == list(inspect.signature(ALGORITHMS[name]).parameters)


@pytest.mark.parametrize('name', ALGORITHMS)
def test_algorithms_accept_the_ends_of_their_ranges(name):
  make = ALGORITHMS[name]
  ordinary = {
    argument: next(value for value in (2, 0.25, 'sign') if allowed.contains(value))
    for argument, allowed in ranges.declared(make).items()
  }
  kinds = {
    argument: parameter.annotation.__origin__
    for argument, parameter in inspect.signature(make).parameters.items()
  }
  for argument, allowed in ranges.declared(make).items():
    for value in (0, 1):
      if allowed.contains(value):
        arguments = ordinary | {argument: value}
        with contextlib.suppress(UserError):
          make(**{argument: kinds[argument](value) for argument, value in arguments.items()})
