"""Compiled programs: counts them and their seconds, and keeps them for the next run."""

import os
from pathlib import Path

import jax

_COMPILED = '/jax/core/compile/backend_compile_duration'
_durations: list[float] = []


def _on_event(event: str, duration: float, **details) -> None:
  del details
  if event == _COMPILED:
    _durations.append(duration)


jax.monitoring.register_event_duration_secs_listener(_on_event)


def count_programs() -> int:
  """Number of programs that this process has compiled so far, or found compiled."""
  return len(_durations)


def compile_seconds() -> float:
  """Seconds that this process has spent so far on compiling programs, or reading compiled ones."""
  return sum(_durations, 0.0)


def keep_programs(folder: Path) -> None:
  """Keeps programs that take at least 0.2 s to compile in a folder.

  JAX's own settings of the folder and the time take precedence.
  """
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update('jax_compilation_cache_dir', str(folder.absolute()))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
