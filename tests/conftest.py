"""Shapes and types are checked while the tests run; compiled programs are kept between runs."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

cache = Path(__file__).parent.parent / '.cache' / 'jax'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')

install_import_hook('nlhf_jax', 'beartype.beartype').__enter__()


@pytest.fixture(scope='session')
def shared() -> Path:
  """The folder of real data, which is not part of the project."""
  folder = Path(os.environ.get('NLHF_SHARED', Path(__file__).parents[2] / 'shared'))
  if not folder.is_dir():
    pytest.skip(f'no real data at {folder}; set NLHF_SHARED to the folder that holds it')
  return folder
