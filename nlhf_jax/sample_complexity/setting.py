"""What a learner knows before any vote; equilibria, gaps and duels over several prompts.

Arrays have a leading axis of X prompts; a single game has X = 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nlhf_jax.games import exact
from nlhf_jax.games.game import Game, exploitability, kl


class Setting(NamedTuple):
  """The distribution of prompts, the reference, and the KL coefficient."""

  prompts: Float[Array, 'X']  # probabilities
  log_reference: Float[Array, 'X K']
  tau: Float[Array, '']


def single_prompt(log_reference: Float[Array, 'K'], tau: Float[Array, ''] | float) -> Setting:
  """The setting of a single game."""
  return Setting(jnp.ones(1, log_reference.dtype), log_reference[None], jnp.asarray(tau, float))


def make_games(setting: Setting, payoff: Float[Array, 'X K K']) -> Game:
  """The game of every prompt, with a leading axis X."""
  tau = jnp.broadcast_to(setting.tau, setting.prompts.shape)
  return Game(payoff, setting.log_reference, tau)


def equilibrium(setting: Setting, payoff: Float[Array, 'X K K']) -> Float[Array, 'X K']:
  """The equilibrium on every prompt, as log-probabilities, for tau > 0."""

  def solve(game):
    # One more step makes the result accurate to the last digits.
    return exact.newton_step(game, exact.equilibrium(game, 1e-18).log_pi)

  return jax.vmap(solve)(make_games(setting, payoff))


def gap(
  setting: Setting, payoff: Float[Array, 'X K K'], log_pi: Float[Array, 'X K']
) -> Float[Array, '']:
  """G(pi) = 1/2 - min over q of J(pi, q), in units of the payoff; a mean over prompts."""
  return setting.prompts @ jax.vmap(exploitability)(make_games(setting, payoff), log_pi)


def divergence(
  setting: Setting, log_p: Float[Array, 'X K'], log_q: Float[Array, 'X K']
) -> Float[Array, '']:
  """KL(p, q) in nats, a mean over prompts."""
  return setting.prompts @ jax.vmap(kl)(log_p, log_q)


def duel_weights(
  setting: Setting, log_p: Float[Array, 'X K'], log_q: Float[Array, 'X K']
) -> Float[Array, 'X K K']:
  """w with E_{p,q} delta = sum over prompts and pairs a < b of w_ab delta_ab, delta antisymmetric.

  w_ab = d0 (p_a q_b - p_b q_a), which is 0 for a policy against itself.
  """
  meetings = jnp.exp(log_p)[:, :, None] * jnp.exp(log_q)[:, None, :]
  return setting.prompts[:, None, None] * (meetings - mirror(meetings))


def duel_weights_by_action(setting: Setting, log_p: Float[Array, 'X K']) -> Float[Array, 'X K K K']:
  """`duel_weights` of a policy with every single action, the second axis, on every prompt."""
  actions = log_p.shape[-1]
  meetings = jnp.exp(log_p)[:, None, :, None] * jnp.eye(actions, dtype=log_p.dtype)[None, :, None]
  return setting.prompts[:, None, None, None] * (meetings - mirror(meetings))


def mirror(values: Float[Array, '*B K K']) -> Float[Array, '*B K K']:
  """The transposed matrices: entries of column against row."""
  return values.swapaxes(-1, -2)


def sum_over_pairs(values: Float[Array, '*B K K']) -> Float[Array, '*B']:
  """The sum over the pairs a < b of symmetric values."""
  return jnp.triu(values, 1).sum(axis=(-2, -1))
