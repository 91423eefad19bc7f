"""Shapes and types are checked while the tests run; compiled programs are kept between runs."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook
from ml_collections import ConfigDict

cache = Path(__file__).parent.parent / '.cache' / 'jax'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
# Toy sizes compile for longer than they run.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')

install_import_hook('nlhf_jax', 'beartype.beartype').__enter__()


def pytest_collection_modifyitems(items):
  """The two tests that take minutes go first, so that the others fill the time beside them.

  Each of two workers begins with its half of the list.
  """
  for name, place in (('test_token_game_solved', len(items) // 2), ('test_embedded_task', 0)):
    long = [item for item in items if name in item.nodeid]
    for item in long:
      items.remove(item)
      items.insert(place, item)


@pytest.fixture(scope='session')
def shared() -> Path:
  """The folder of real data, which is not part of the project."""
  folder = Path(os.environ.get('NLHF_SHARED', Path(__file__).parents[2] / 'shared'))
  if not folder.is_dir():
    pytest.skip(f'no real data at {folder}; set NLHF_SHARED to the folder that holds it')
  return folder


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
    config.tournament.prompts = 8
    if config.data.source == 'synthetic':
      config.data.update(posts=32, held_out=8)
    else:
      config.data.update(prompt_length=16, response_length=14)
    return config

  return shrink
