"""Commit and answer: a leader commits to a response, and a follower who sees it answers.

    max_pi min_omega E_{y ~ pi} [E_{y' ~ omega(.|y)} A(y, y') + tau_F KL(omega, omega_0)[y]]
                     - tau_L KL(pi, pi_0)

(SLHF, arXiv 2512.16626; with tau_L = tau_F also SRPO, arXiv 2406.01660.) Both players have a closed
form. The follower's best answer does not depend on pi, so that no gradient of the leader runs
through a follower with weights of its own. Policies are log-probabilities.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from nlhf_jax.games.game import kl


class StackelbergGame(NamedTuple):
  """A payoff, the references of both players and the price of leaving each."""

  payoff: Float[Array, 'K K']  # A(y, y') = P(y > y') - 1/2
  log_leader_reference: Float[Array, 'K']
  log_follower_reference: Float[Array, 'K K']  # of y', one row for each y
  leader_tau: Float[Array, '']  # win probability per nat
  follower_tau: Float[Array, '']


class Commitment(NamedTuple):
  """The policies of both players."""

  leader: Float[Array, 'K']
  follower: Float[Array, 'K K']  # of y', one row for each y


# (game, follower) -> what the leader is paid for each action, [K]
LeaderReward = Callable[[StackelbergGame, Float[Array, 'K K']], Float[Array, 'K']]


def regularised_reward(game: StackelbergGame, follower: Float[Array, 'K K']) -> Float[Array, 'K']:
  """E A(y, y') + tau_F KL(omega, omega_0)[y]: the leader's part of the objective. Recommended.

  A follower that is not trained yet makes y look too good, by tau_F KL(omega, omega*)[y].
  """
  prices = jax.vmap(kl)(follower, game.log_follower_reference)
  return payoff_reward(game, follower) + game.follower_tau * prices


def payoff_reward(game: StackelbergGame, follower: Float[Array, 'K K']) -> Float[Array, 'K']:
  """E A(y, y') alone, as the released code of SLHF pays the leader.

  It can change the leader's favourite action, and following it need not raise any objective.
  """
  return jnp.sum(jnp.exp(follower) * game.payoff, axis=1)


def best_follower(game: StackelbergGame) -> Float[Array, 'K K']:
  """omega*(y'|y) = omega_0(y'|y) exp(-A(y, y') / tau_F) / Z(y)."""
  return jax.nn.log_softmax(game.log_follower_reference - game.payoff / game.follower_tau)


def follower_values(game: StackelbergGame) -> Float[Array, 'K']:
  """V_F(y) = -tau_F log sum_{y'} omega_0(y'|y) exp(-A(y, y') / tau_F)."""
  tilted = game.log_follower_reference - game.payoff / game.follower_tau
  return -game.follower_tau * jax.nn.logsumexp(tilted, axis=1)


def best_leader(game: StackelbergGame, reward: Float[Array, 'K']) -> Float[Array, 'K']:
  """pi_0 exp(reward / tau_L) / Z: the leader's optimum for a given reward of each action."""
  return jax.nn.log_softmax(game.log_leader_reference + reward / game.leader_tau)


def commitment(game: StackelbergGame) -> Commitment:
  """The unique saddle point of the objective."""
  return Commitment(best_leader(game, follower_values(game)), best_follower(game))


def commitment_value(game: StackelbergGame) -> Float[Array, '']:
  """The objective at its saddle point: tau_L log sum_y pi_0 exp(V_F / tau_L)."""
  tilted = game.log_leader_reference + follower_values(game) / game.leader_tau
  return game.leader_tau * jax.nn.logsumexp(tilted)


def commitment_objective(game: StackelbergGame, pair: Commitment) -> Float[Array, '']:
  """The objective F(pi, omega), in win probability less 1/2.

  F = v* - tau_L KL(pi, pi*) + tau_F E_{y ~ pi} KL(omega, omega*)[y]: what either player loses.
  """
  price = game.leader_tau * kl(pair.leader, game.log_leader_reference)
  return jnp.exp(pair.leader) @ regularised_reward(game, pair.follower) - price


def two_time_scale_step(
  game: StackelbergGame,
  logits: Commitment,
  rate: ArrayLike,
  kappa: ArrayLike,
  reward: LeaderReward = regularised_reward,
) -> Commitment:
  """One step of gradient ascent of the leader, and of descent of the follower, both at once.

  Args:
    game: one game.
    logits: of both players.
    rate: the leader's step.
    kappa: the follower's step in units of the leader's.
    reward: what the leader is paid.
  """

  def leader_objective(leader):
    log_pi = jax.nn.log_softmax(leader)
    price = game.leader_tau * kl(log_pi, game.log_leader_reference)
    return jnp.exp(log_pi) @ reward(game, jax.nn.log_softmax(logits.follower)) - price

  def follower_objective(follower):
    log_pi, log_omega = map(jax.nn.log_softmax, (logits.leader, follower))
    return jnp.exp(log_pi) @ regularised_reward(game, log_omega)

  up = jax.grad(leader_objective)(logits.leader)
  down = jax.grad(follower_objective)(logits.follower)
  return Commitment(logits.leader + rate * up, logits.follower - kappa * rate * down)


def refinement_payoffs(
  game: StackelbergGame, pair: Commitment, rounds: int
) -> Float[Array, 'rounds']:
  """The mean payoff of the answer after 1, 2, ... rounds of refinement against the first response.

  y_1 ~ pi, y_{k+1} ~ omega(.|y_k). Where preferences are cyclic later rounds can lose.
  """
  follower = jnp.exp(pair.follower)

  def refine(joint, _):
    joint = joint @ follower
    return joint, jnp.sum(joint * game.payoff.T)

  return jax.lax.scan(refine, jnp.diag(jnp.exp(pair.leader)), length=rounds)[1]


def srpo_residuals(
  game: StackelbergGame, pair: Commitment
) -> tuple[Float[Array, 'K K'], Float[Array, 'K K']]:
  """What the squared losses of SRPO square, for every pair (winner w, loser l) with its payoff.

  With h = log pi / pi_0, h+(y'|y) = log omega / omega_0 and beta the price of both players, the
  first is beta [h+(w|l) - h+(l|l)] - A(w, l), and the second is beta [h+(w|l) - h+(l|w) + h(w) -
  h(l)] - 2 A(w, l). Both vanish at the saddle point, whatever sampled the pairs; the first alone
  determines omega, the second alone determines neither.
  """
  ratio = (pair.follower - game.log_follower_reference).T  # h+(w|l), [w, l]
  plain = pair.leader - game.log_leader_reference
  beta = game.follower_tau
  own = beta * (ratio - jnp.diag(ratio)) - game.payoff
  both = beta * (ratio - ratio.T + plain[:, None] - plain) - 2 * game.payoff
  return own, both
