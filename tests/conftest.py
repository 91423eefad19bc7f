"""Fixtures and settings of all tests.

Shapes and types are checked while the tests run, and compiled programs are kept between runs. Each
file runs on one worker, so that its fixtures are made once.
"""

import importlib
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from filelock import FileLock
from jaxtyping import install_import_hook
from ml_collections import ConfigDict

from tests import emulators

ROOT = Path(__file__).parents[1]
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
# Toy sizes compile for longer than they run; these settings halve the time of a test.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
FLAGS = '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
os.environ['XLA_FLAGS'] = f'{FLAGS} {os.environ.get("XLA_FLAGS", "")}'
# For programs at full size: what they compile runs for longer than it takes to optimise it.
OPTIMISED = {'JAX_DISABLE_MOST_OPTIMIZATIONS': '0', 'XLA_FLAGS': ''}

# The hook makes Python look for compiled files of its own, for libraries as well: they are kept.
sys.dont_write_bytecode = False
os.environ.pop('PYTHONDONTWRITEBYTECODE', None)
install_import_hook('nlhf_jax', 'beartype.beartype').__enter__()

# The files that take longest, longest first: a worker that begins one of them late ends late.
LONGEST = (
  'test_embedded_task',
  'test_token_game_solved',
  'test_configs',
  'test_distributed',
  'test_memory_plan',
  'test_interruption',
  'test_chaos',
  'test_elastic',
  'test_machines_apart',
  'test_store',
  'test_mesh',
  'test_estimators',
)


def pytest_collection_modifyitems(items):
  """The longest files go first; all others fill the time beside and after them."""
  place = {name: number for number, name in enumerate(LONGEST)}
  items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


def pytest_terminal_summary(terminalreporter):
  """Prints what tests that passed recorded with `record_property`, on whichever worker."""
  for report in terminalreporter.getreports('passed'):
    for name, value in report.user_properties:
      terminalreporter.write_line(f'{name}: {value}')


@pytest.fixture(scope='session', autouse=True)
def environment_of_commands():
  """Commands that tests start have no PyTorch, as those of users; importing it takes seconds."""
  os.environ['PYTHONPATH'] = os.pathsep.join(
    [str(ROOT / 'tests' / 'as_users'), *filter(None, [os.environ.get('PYTHONPATH')])]
  )


@pytest.fixture(scope='session')
def shared() -> Path:
  """The folder of real data, which is not part of the project."""
  folder = Path(os.environ.get('NLHF_SHARED', ROOT.parent / 'shared'))
  if not folder.is_dir():
    pytest.skip(f'no real data at {folder}; set NLHF_SHARED to the folder that holds it')
  return folder


@pytest.fixture(scope='session')
def google_emulator():
  with emulators.run_google() as environment:
    yield environment


@pytest.fixture(scope='session')
def amazon_emulator():
  with emulators.run_amazon() as environment:
    yield environment


@pytest.fixture
def gs_bucket(google_emulator, monkeypatch) -> str:
  """The URL of an empty bucket in an emulator of Google Cloud Storage."""
  return emulators.make_google_bucket(google_emulator, monkeypatch)


@pytest.fixture
def s3_bucket(amazon_emulator, monkeypatch) -> str:
  """The URL of an empty bucket in an emulator of Amazon's S3."""
  return emulators.make_amazon_bucket(amazon_emulator, monkeypatch)


@pytest.fixture
def float64():
  """Double precision within the test alone, for numbers that are known to many digits."""
  import jax  # after the settings above

  with jax.enable_x64(True):
    yield


@pytest.fixture(scope='session')
def toy():
  """A function that shrinks a config until a run takes seconds."""

  def shrink(config: ConfigDict) -> ConfigDict:
    config.model.update(width=16, layers=1, heads=2, key_heads=1, head_size=8, hidden=16)
    judges = [config.preference_model, config.reward_model, config.general_preference_model]
    exploiter = [config.exploiter] if config.exploiter else []
    for row in (config.sft, *judges, *config.policies.values(), *exploiter):
      row.update(steps=2, batch=4, evaluate_every=2)
    for votes in (row.votes for row in config.policies.values() if 'votes' in row):
      votes.update(total=16, rounds=min(votes.rounds, 2), ensemble=2)
      votes.training.update(steps=2, batch=4, evaluate_every=2)
    for row in config.policies.values():
      if 'prompter' in row:
        row.prompter.pool = 8
    config.tournament.prompts = 8
    if 'posts' in config.data:
      config.data.update(posts=32, held_out=8)
    else:
      config.data.update(prompt_length=16, response_length=14)
    return config

  return shrink


@pytest.fixture(scope='session')
def config_named(toy):
  """A function that gives a config of `configs/`, shrunk: its name, and what it takes."""

  def config_named(name: str, *source: str) -> ConfigDict:
    return toy(importlib.import_module(f'nlhf_jax.configs.{name}').get_config(*source))

  return config_named


@pytest.fixture(scope='session')
def session_folder(tmp_path_factory, worker_id) -> Path:
  """A folder that all workers of this test session share."""
  own = tmp_path_factory.getbasetemp()
  return own if worker_id == 'master' else own.parent


class ToyRun(NamedTuple):
  """A finished run of the embedded task at toy size. Tests change copies only."""

  make_config: Callable[[], ConfigDict]  # a deep copy would sort the policies by name
  folder: Path  # with the work directory `run`, and `stages`

  def copy_to(self, folder: Path) -> tuple[ConfigDict, Path]:
    """Its config, and a copy of its files in an empty or missing folder."""
    shutil.copytree(self.folder, folder, dirs_exist_ok=True)
    return self.make_config(), folder


@pytest.fixture(scope='session')
def toy_run(config_named, session_folder) -> ToyRun:
  """`configs/nash_md.py` at toy size, trained once in a test session, by the first who needs it."""
  from nlhf_jax.experiments.start import start

  config, folder = config_named('nash_md'), session_folder / 'toy_run'
  with FileLock(session_folder / 'toy_run.lock'):
    if not (folder / 'run' / 'report.html').exists():
      start(config, 'nash_md', folder / 'run', folder / 'stages')
  return ToyRun(partial(config_named, 'nash_md'), folder)
