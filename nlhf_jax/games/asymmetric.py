"""Regularised zero-sum games without symmetry between the two players.

The max player gets x^T M y; a bonus in the payoff of one side makes such games. Each player has its
own reference and pays tau KL for leaving it; Newton's matrix is again I minus an antisymmetric one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nlhf_jax.games.exact import cap_change
from nlhf_jax.games.game import kl
from nlhf_jax.linear_algebra import solve


class AsymmetricGame(NamedTuple):
  """max over x, min over y of x^T M y - tau KL(x, p0) + tau KL(y, q0)."""

  payoff: Float[Array, 'K J']
  log_left: Float[Array, 'K']  # log p0
  log_right: Float[Array, 'J']  # log q0
  tau: Float[Array, '']


class Pair(NamedTuple):
  """The policies of both players, as log-probabilities."""

  left: Float[Array, 'K']
  right: Float[Array, 'J']


class AsymmetricEquilibrium(NamedTuple):
  """Both policies, the duality gap of the pair, and the number of Newton steps."""

  pair: Pair
  duality_gap: Float[Array, '']
  steps: Int[Array, '']


def log_best_responses(game: AsymmetricGame, pair: Pair) -> Pair:
  """Each player's best response to the other, for tau > 0."""
  left = game.log_left + game.payoff @ jnp.exp(pair.right) / game.tau
  right = game.log_right - game.payoff.T @ jnp.exp(pair.left) / game.tau
  return Pair(jax.nn.log_softmax(left), jax.nn.log_softmax(right))


def duality_gap(game: AsymmetricGame, pair: Pair) -> Float[Array, '']:
  """tau KL(x, BR(y)) + tau KL(y, BR(x)): what both could gain; zero only at the equilibrium."""
  reply = log_best_responses(game, pair)
  return game.tau * (kl(pair.left, reply.left) + kl(pair.right, reply.right))


def newton_step(game: AsymmetricGame, pair: Pair) -> Pair:
  """One Newton step on the logits of both players, `capped`."""
  x, y = jnp.exp(pair.left), jnp.exp(pair.right)
  reply = log_best_responses(game, pair)
  residual = jnp.concatenate([reply.left - pair.left, reply.right - pair.right])
  matrix = jnp.block(
    [
      [jnp.eye(len(x)), -game.payoff * (y / game.tau)],
      [game.payoff.T * (x / game.tau), jnp.eye(len(y))],
    ]
  )
  # Each player's logits may shift by a constant, chosen so that the step keeps the sums at 1.
  ones = jnp.concatenate([jnp.ones_like(x), jnp.zeros_like(y)])
  shifts = jnp.stack([ones, 1 - ones], axis=1)
  solved = solve(matrix, jnp.column_stack([residual, shifts]))
  mass = shifts * jnp.concatenate([x, y])[:, None]
  amounts = solve(mass.T @ solved[:, 1:], mass.T @ solved[:, 0])
  change = solved[:, 0] - solved[:, 1:] @ amounts
  change = cap_change(jnp.concatenate([pair.left, pair.right]), change)
  left, right = change[: len(x)], change[len(x) :]
  return Pair(jax.nn.log_softmax(pair.left + left), jax.nn.log_softmax(pair.right + right))


def equilibrium(
  game: AsymmetricGame, tolerance: float = 1e-12, limit: int = 600
) -> AsymmetricEquilibrium:
  """The equilibrium for tau > 0, by Newton with tau lowered in stages; can be vmapped.

  Args:
    game: one game.
    tolerance: duality gap to reach, in units of the payoff.
    limit: the most Newton steps; a gap above the tolerance tells that they were not enough.
  """

  def unsolved(carry):
    pair, tau, steps = carry
    return (steps < limit) & ((tau > game.tau) | ~(duality_gap(game, pair) <= tolerance))

  def one(carry):
    pair, tau, steps = carry
    stage = game._replace(tau=tau)
    pair = newton_step(stage, pair)
    lower = jnp.maximum(game.tau, tau / 4)
    return pair, jnp.where(duality_gap(stage, pair) < 1e-2 * tau, lower, tau), steps + 1

  start = Pair(game.log_left, game.log_right)
  tau = jnp.maximum(game.tau, abs(game.payoff).max())
  pair, _, steps = lax.while_loop(unsolved, one, (start, tau, jnp.int32(0)))
  return AsymmetricEquilibrium(pair, duality_gap(game, pair), steps)
