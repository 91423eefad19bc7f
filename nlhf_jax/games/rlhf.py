"""RLHF compared with the Nash equilibrium on a matrix game."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from nlhf_jax.games.exact import equilibrium
from nlhf_jax.games.game import Game, exploitability, gains
from nlhf_jax.linear_algebra import solve


class RlhfComparison(NamedTuple):
  """The policies of both methods, as log-probabilities, and their gaps in win probability."""

  reward: Float[Array, 'K']  # fitted, 0 for the first action
  log_rlhf: Float[Array, 'K']
  log_nash: Float[Array, 'K']
  nash_beats_rlhf: Float[Array, '']  # P(nash > rlhf)
  rlhf_exploitability: Float[Array, '']  # max P(y > pi) - 1/2
  nash_exploitability: Float[Array, '']


def bradley_terry_reward(
  payoff: Float[Array, 'K K'], sampling: Float[Array, 'K']
) -> Float[Array, 'K']:
  """argmax_r E_{y, y' ~ sampling} P(y > y') log sigmoid(r(y) - r(y')), with r = 0 for action 0.

  The population's maximum-likelihood fit (arXiv 2312.00886, section 3.2 and appendix B): it makes
  P_r(y > sampling) = P(y > sampling) for every y, so that it ranks actions as a best response to
  the sampling policy does. Found by fifty capped Newton steps on a concave problem. Every action
  must have a positive sampling probability, and `choice.has_bradley_terry_fit` must hold; otherwise
  there is no finite maximum, and the result is meaningless.
  """
  weight = sampling[:, None] * sampling

  def one(_, reward):
    predicted = jax.nn.sigmoid(reward[:, None] - reward)
    slope = (weight * (payoff + 0.5 - predicted)).sum(axis=1)
    pairs = weight * predicted * (1 - predicted)
    curvature = jnp.diag(pairs.sum(axis=1)) - pairs
    change = solve(curvature[1:, 1:], slope[1:])
    change = change * jnp.minimum(1, 2 / jnp.max(abs(change), initial=0))
    return reward.at[1:].add(change)

  return lax.fori_loop(0, 50, one, jnp.zeros_like(sampling))


def compare_with_nash(game: Game, sampling: Float[Array, 'K']) -> RlhfComparison:
  """RLHF on the reward fitted under `sampling`, pi = mu exp(r / tau) / Z, and the equilibrium.

  tau multiplies the KL in units of reward (log-odds) for RLHF and of win probability for the
  equilibrium, so the same tau does not keep both equally close to the reference.
  """
  reward = bradley_terry_reward(game.payoff, sampling)
  log_rlhf = jax.nn.log_softmax(game.log_reference + reward / game.tau)
  log_nash = equilibrium(game).log_pi
  free = game._replace(tau=jnp.zeros_like(game.tau))
  return RlhfComparison(
    reward,
    log_rlhf,
    log_nash,
    jnp.exp(log_nash) @ gains(game, log_rlhf) + 0.5,
    exploitability(free, log_rlhf),
    exploitability(free, log_nash),
  )
