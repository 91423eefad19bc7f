"""A preference game over K actions, its best response and its exact gaps.

Functions take one game; `jax.vmap` maps them over prompts, seeds or temperatures. Policies are
log-probabilities, in nats; a policy may have zeros (-inf), a reference may not. Games without
symmetry between the players are in `asymmetric.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from nlhf_jax.errors import UserError
from nlhf_jax.ranges import NonNegative


class Game(NamedTuple):
  """Both players sample an action; each pays tau times its KL to the reference.

  P_tau(pi > pi') = 1/2 + pi^T A pi' - tau KL(pi, mu) + tau KL(pi', mu) (arXiv 2312.00886, eq. 2).
  """

  payoff: Float[Array, 'K K']  # A = P - 1/2, antisymmetric
  log_reference: Float[Array, 'K']  # log mu
  tau: Float[Array, '']  # KL coefficient, win probability per nat; 0 for the unregularised game


def make_game(
  payoff: ArrayLike, reference: ArrayLike | None = None, tau: NonNegative = 0.0
) -> Game:
  """A game, or a batch of games if `payoff` is [..., K, K].

  Args:
    payoff: win probabilities minus 1/2, [..., K, K].
    reference: probabilities, [K] or [..., K]; uniform by default.
    tau: KL coefficient, in win probability per nat.

  Raises:
    UserError: that names the entry and what is wrong with it.
  """
  payoff = np.asarray(payoff, float)
  check_payoff(payoff)
  actions = payoff.shape[-1]
  reference = np.full(actions, 1 / actions) if reference is None else np.asarray(reference, float)
  check_reference(reference, actions)
  if not 0 <= tau < np.inf:
    raise UserError(f'tau={tau} must be at least 0, and finite.')
  reference = reference / reference.sum(axis=-1, keepdims=True)
  batch = payoff.shape[:-2]
  return Game(
    jnp.asarray(payoff),
    jnp.asarray(np.broadcast_to(np.log(reference), (*batch, actions))),
    jnp.full(batch, tau, float),
  )


def check_payoff(payoff: np.ndarray) -> None:
  """Raises UserError unless `payoff` is finite, square in its last axes, and antisymmetric."""
  if payoff.ndim < 2 or payoff.shape[-1] != payoff.shape[-2] or not payoff.size:
    raise UserError(f'a payoff must be a square matrix, not an array of shape {payoff.shape}.')
  bad = np.argwhere(~np.isfinite(payoff))
  if len(bad):
    raise UserError(f'payoff{bad[0].tolist()} is {payoff[tuple(bad[0])]}; it must be finite.')
  defect = abs(payoff + payoff.swapaxes(-1, -2))
  worst = np.unravel_index(defect.argmax(), defect.shape)
  if defect[worst] > 1e-9 * max(1, abs(payoff).max()):
    *batch, i, j = map(int, worst)
    mirror = payoff[(*batch, j, i)]
    raise UserError(
      f'the payoff is not antisymmetric: {[*batch, i, j]} is {payoff[worst]:.6g} and '
      f'{[*batch, j, i]} is {mirror:.6g}, which add up to {payoff[worst] + mirror:.3g} instead of '
      '0; take (A - A^T) / 2 if the rest is noise.'
    )


def check_reference(reference: np.ndarray, actions: int) -> None:
  """Raises UserError unless `reference` is a policy with every one of `actions` in its support."""
  if reference.ndim == 0 or reference.shape[-1] != actions:
    raise UserError(
      f'the reference must give {actions} actions a probability; its shape is {reference.shape}.'
    )
  zero = np.argwhere(~(reference > 0))
  if len(zero):
    raise UserError(
      f'reference{zero[0].tolist()} is {reference[tuple(zero[0])]}; a regularised equilibrium '
      'never plays such an action; leave it out of the game, or give it a small probability.'
    )
  if not np.allclose(reference.sum(-1), 1, rtol=0, atol=1e-6):
    raise UserError(f'the reference must sum to 1; it sums to {reference.sum(-1)}.')


def gains(game: Game, log_pi: Float[Array, 'K']) -> Float[Array, 'K']:
  """P(y > pi) - 1/2 of every action y: A pi."""
  return game.payoff @ jnp.exp(log_pi)


def log_best_response(game: Game, log_pi: Float[Array, 'K']) -> Float[Array, 'K']:
  """log of mu exp(A pi / tau) / Z; with tau = 0 the best action, the first one of a tie."""
  gain = gains(game, log_pi)
  tau = jnp.where(game.tau > 0, game.tau, 1)
  # Differences within rounding count as a tie.
  slack = 64 * jnp.finfo(gain.dtype).eps * jnp.max(abs(game.payoff))
  first = jnp.arange(len(gain)) == jnp.argmax(gain >= jnp.max(gain) - slack)
  greedy = jnp.where(first, 0, -jnp.inf)
  return jnp.where(game.tau > 0, jax.nn.log_softmax(game.log_reference + gain / tau), greedy)


def kl(log_p: Float[Array, 'K'], log_q: Float[Array, 'K']) -> Float[Array, '']:
  """KL(p, q) in nats. Every term summed is positive, so that tiny divergences are accurate.

  sum_a q_a (r log r - r + 1) with r = p / q, which for distributions is sum_a p_a log(p_a / q_a).
  """
  p, q = jnp.exp(log_p), jnp.exp(log_q)
  d = jnp.where((p == 0) & (q == 0), 0, log_p - log_q)
  near = abs(d) < 1e-2
  e = jnp.where(near, d, 0)
  series = e**2 * (1 / 2 + e * (1 / 3 + e * (1 / 8 + e * (1 / 30 + e * (1 / 144 + e / 840)))))
  return jnp.sum(jnp.where(near, q * series, jnp.where(p > 0, p * d, 0) - (p - q)))


def exploitability(game: Game, log_pi: Float[Array, 'K']) -> Float[Array, '']:
  """max over pi' of P_tau(pi' > pi), less 1/2; zero only at the equilibrium.

  It equals tau KL(pi, BR(pi)), since all other terms cancel by antisymmetry; in this form gaps far
  below the rounding of 1/2 are accurate. With tau = 0 it is the largest entry of A pi. It is half
  of `duality_gap`.
  """
  regularised = game.tau * kl(log_pi, log_best_response(game, log_pi))
  return jnp.where(game.tau > 0, regularised, jnp.max(gains(game, log_pi)))


def duality_gap(game: Game, log_pi: Float[Array, 'K']) -> Float[Array, '']:
  """max over pi' of P_tau(pi' > pi), less min over pi' of P_tau(pi > pi')."""
  return 2 * exploitability(game, log_pi)


def value(game: Game, log_p: Float[Array, 'K'], log_q: Float[Array, 'K']) -> Float[Array, '']:
  """P_tau(p > q) - 1/2."""
  penalty = kl(log_p, game.log_reference) - kl(log_q, game.log_reference)
  return jnp.exp(log_p) @ gains(game, log_q) - game.tau * penalty
