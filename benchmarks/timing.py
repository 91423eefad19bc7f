"""Seconds of calls, and the limits of the machine that they are compared with."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


def timed(call: Callable, runs: int) -> list[float]:
  """Seconds of each run until its results are ready, without the first two runs."""
  return time_alternately({'': call}, runs)['']


def time_alternately(calls: dict[str, Callable], runs: int) -> dict[str, list[float]]:
  """`timed` for several calls, run alternately, so that other load slows all of them."""
  seconds = {name: [] for name in calls}
  for _ in range(runs + 2):
    for name, call in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(call())
      seconds[name].append(time.perf_counter() - start)
  return {name: taken[2:] for name, taken in seconds.items()}


def ceilings(compute: str) -> dict[str, float]:
  """Operations a second of a large product, and bytes a second of reading and of copying."""
  on_cpu = jax.default_backend() == 'cpu'
  square = jnp.ones((4096 if on_cpu else 8192,) * 2, compute)
  long = jnp.ones(2**27 if on_cpu else 2**30, jnp.float32)
  product, total, copy = (jax.jit(f) for f in (lambda x: x @ x, jnp.sum, lambda x: x + 1))
  return {
    'matmul': 2 * len(square) ** 3 / min(timed(lambda: product(square), 5)),
    'read': long.nbytes / min(timed(lambda: total(long), 5)),
    'copy': 2 * long.nbytes / min(timed(lambda: copy(long), 5)),
  }


class Work(NamedTuple):
  """The minimal work of a part; `tokens` are those of the responses.

  `forwards` counts tokens processed by a model; TRL, which has no cache for mixtures, processes
  `forwards_uncached`.
  """

  operations: float
  bytes: float = 0.0
  tokens: int = 0
  forwards: int = 0
  forwards_uncached: int = 0

  def seconds(self, ceiling: dict[str, float]) -> float:
    """The minimal time on a machine with these rates."""
    return max(self.operations / ceiling['matmul'], self.bytes / ceiling['read'])
