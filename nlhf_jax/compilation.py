"""Compiled programs: how many there have been, and where they are kept for the next run."""

import os
from pathlib import Path

import jax

_BUILT = '/jax/core/compile/backend_compile_duration'
_built = [0]


def _heard(event: str, duration: float, **details) -> None:
  del duration, details
  _built[0] += event == _BUILT


jax.monitoring.register_event_duration_secs_listener(_heard)


def count_programs() -> int:
  """How many programs this process has compiled, or found compiled, so far."""
  return _built[0]


def keep_programs(folder: Path) -> None:
  """Keeps programs that took some time to compile in the folder, unless JAX was told of another."""
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update('jax_compilation_cache_dir', str(folder.absolute()))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
