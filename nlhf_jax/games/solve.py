"""Runs a solver, and records its iterates."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from nlhf_jax.errors import UserError
from nlhf_jax.games.game import Game
from nlhf_jax.games.solvers import Solver


class Path(NamedTuple):
  """The iterates of a solver after each of the requested numbers of updates, log-probabilities."""

  updates: Int[Array, 'R']
  last: Float[Array, 'R K']
  average: Float[Array, 'R K']  # of the start and the iterates so far


def solve(
  solver: Solver,
  game: Game,
  updates: Int[Array | np.ndarray, 'R'],
  start: Float[Array, 'K'] | None = None,
  weight: Callable[[ArrayLike], ArrayLike] = lambda count: 1.0,
) -> Path:
  """Runs a solver in one scan; works under `jax.jit` and `jax.vmap`.

  Args:
    solver: the solver.
    game: one game.
    updates: the numbers of updates after which to record, increasing, such as `when(10_000)`.
    start: log-probabilities; the reference by default.
    weight: number of updates -> weight of the iterate in the average; 1 by default.

  Returns:
    The path; its first row is the start if `updates` begins with 0.
  """
  if isinstance(updates, np.ndarray) and (np.diff(updates, prepend=0) < 0).any():
    raise UserError(f'updates must be increasing from 0 on, not {updates}.')
  start = game.log_reference if start is None else start

  def one(_, carry):
    state, average, total = carry
    state = solver.update(game, state)
    current = weight(state.count)
    total = total + current
    part = current / jnp.where(total > 0, total, 1)
    average = average + part * (jnp.exp(state.log_pi) - average)
    return state, average, total

  def stretch(carry, count):
    carry = lax.fori_loop(0, count, one, carry)
    state, average, _ = carry
    return carry, (state.log_pi, jnp.log(average))

  updates = jnp.asarray(updates)
  carry = solver.init(game, start), jnp.exp(start), jnp.asarray(weight(0), start.dtype)
  _, (last, average) = lax.scan(stretch, carry, jnp.diff(updates, prepend=0))
  return Path(updates, last, average)


def log_spaced_updates(total: int, points: int = 200) -> np.ndarray:
  """Numbers of updates evenly spread on a log axis: 0, 1, ..., total."""
  return np.unique(np.geomspace(1, total + 1, points).round().astype(np.int32) - 1)
