"""Offline learning from given votes: plug-in, and two kinds of pessimism.

Pessimism subtracts the uncertainty of a policy's payoff, and so prefers policies that the data
cover.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nlhf_jax.games import asymmetric
from nlhf_jax.games.asymmetric import AsymmetricGame
from nlhf_jax.games.game import kl, log_best_response
from nlhf_jax.sample_complexity.classes import Counts, Preference, PreferenceClass
from nlhf_jax.sample_complexity.links import Link
from nlhf_jax.sample_complexity.setting import (
  Setting,
  divergence,
  duel_weights,
  equilibrium,
  gap,
  make_games,
)


class LearnedPolicy(NamedTuple):
  """A policy, and the most that another one could gain in the learner's own objective.

  In a version space it holds to the extent that the worst members were found.
  """

  log_pi: Float[Array, 'X K']
  value: Float[Array, '']  # its worst-case payoff
  left: Float[Array, '']


def plug_in(setting: Setting, link: Link, estimate: Preference) -> LearnedPolicy:
  """The equilibrium of the estimate."""
  payoff = link.payoff(estimate)
  log_pi = equilibrium(setting, payoff)
  left = gap(setting, payoff, log_pi)
  return LearnedPolicy(log_pi, -left, left)


def learn_with_bonus(
  members: PreferenceClass,
  setting: Setting,
  link: Link,
  estimate: Preference,
  counts: Counts,
  beta: Float[Array, ''] | float,
) -> LearnedPolicy:
  """Option II: the max player's side of the game of P - beta Gamma, which is not symmetric.

  If beta^2 is at least the error of the truth, then
  G <= 2 beta max over q of E_{a ~ pi*, b ~ q} Gamma(a, b), in probabilities.

  Args:
    members: the class, for the bonus Gamma(a, b) of every pair.
    setting: prompts, reference and tau.
    link: win probability -> payoff, applied to the lower bound on P.
    estimate: of the preferences.
    counts: of comparisons.
    beta: multiple of the bonus.
  """
  payoff = link.payoff(estimate - beta * members.bonus(estimate, counts))
  itself = jnp.eye(payoff.shape[-1], dtype=bool)
  payoff = jnp.where(itself, 0, payoff)

  def solve(payoff, log_reference):
    game = AsymmetricGame(payoff, log_reference, log_reference, setting.tau)
    found = asymmetric.equilibrium(game)
    log_pi = found.pair.left
    reply = asymmetric.log_best_responses(game, found.pair).right
    value = jnp.exp(log_pi) @ payoff @ jnp.exp(reply)
    far = kl(log_pi, log_reference) - kl(reply, log_reference)
    return log_pi, value - setting.tau * far, found.duality_gap

  log_pi, value, left = jax.vmap(solve)(payoff, setting.log_reference)
  return LearnedPolicy(log_pi, setting.prompts @ value, setting.prompts @ left)


def learn_in_version_space(
  members: PreferenceClass,
  setting: Setting,
  link: Link,
  estimate: Preference,
  counts: Counts,
  budget: Float[Array, ''],
  updates: Int[Array, ''] | int = 400,
) -> LearnedPolicy:
  """Option I: max over p, min over q and over members P within the budget, of J_P(p, q).

  The maximum is concave: mirror ascent with falling steps, which returns its best iterate. The
  minimum is not convex: opponents start at all vertices and the reference, take a `worst_case_step`
  per update, and restart where that is worse for the policy. `left` compares with a best response
  to the mixture of all members and opponents found, in which late ones have larger weights.

  Args:
    members: the class.
    setting: prompts, reference and tau.
    link: win probability -> payoff.
    estimate: of the preferences, the centre of the version space.
    counts: of comparisons.
    budget: the largest error of a member, such as `members.radius`.
    updates: steps of mirror ascent.
  """

  def one(count, carry):
    log_pi, opponents, best, (gained, penalty, weight) = carry
    faced = jax.vmap(
      lambda log_q: worst_case_step(members, setting, link, estimate, counts, budget, log_pi, log_q)
    )
    # [2, S, ...]: continued, restarted.
    both = jax.tree.map(
      lambda leaf: leaf.reshape(2, -1, *leaf.shape[1:]),
      faced(jnp.concatenate([opponents, initial_opponents(setting)])),
    )
    restart = both[2][1] < both[2][0]
    payoffs, opponents, values = jax.tree.map(
      lambda leaf: jnp.where(restart.reshape(-1, *[1] * (leaf.ndim - 2)), leaf[1], leaf[0]), both
    )
    least = jnp.argmin(values)
    better = values[least] > best[1]
    best = jax.tree.map(partial(jnp.where, better), (log_pi, values[least]), best)
    step = 1 / (setting.tau * (count + 2.0) + 0.05 * jnp.sqrt(count + 1.0))
    gains = jnp.einsum('xab,xb->xa', payoffs[least], jnp.exp(opponents[least]))
    current = setting.tau * divergence(setting, opponents[least], setting.log_reference)
    mixed = gained + count * gains, penalty + count * current, weight + count
    pull = setting.tau * (setting.log_reference - log_pi)
    return jax.nn.log_softmax(log_pi + step * (gains + pull)), opponents, best, mixed

  start = plug_in(setting, link, estimate).log_pi
  zero = jnp.zeros((), start.dtype)
  carry = start, initial_opponents(setting), (start, zero - jnp.inf), (0 * start, zero, zero)
  carry = lax.fori_loop(0, updates, one, carry)
  _, _, (log_pi, value), (gained, penalty, weight) = one(updates, carry)
  ahead = jax.nn.logsumexp(setting.log_reference + gained / weight / setting.tau, axis=1)
  most = setting.tau * (setting.prompts @ ahead) + penalty / weight
  return LearnedPolicy(log_pi, value, most - value)


def initial_opponents(setting: Setting) -> Float[Array, 'S X K']:
  """The initial opponents: every action with probability of about 0.99, and the reference."""
  actions = setting.log_reference.shape[-1]
  corners = 0.99 * jnp.eye(actions)[:, None] + 0.01 * jnp.exp(setting.log_reference)
  return jnp.concatenate([jnp.log(corners), setting.log_reference[None]])


def worst_case_step(
  members: PreferenceClass,
  setting: Setting,
  link: Link,
  estimate: Preference,
  counts: Counts,
  budget: Float[Array, ''],
  log_p: Float[Array, 'X K'],
  log_q: Float[Array, 'X K'],
) -> tuple[Float[Array, 'X K K'], Float[Array, 'X K'], Float[Array, '']]:
  """The worst member for p against q, the best response to p under it, and the payoff of p.

  The payoff is that of the returned pair. If the link is linear, repeating the step never raises
  it; otherwise the member is the worst to first order.
  """
  weights = duel_weights(setting, log_p, log_q) * link.slope(estimate)
  payoff = link.payoff(members.worst(estimate, counts, weights, budget))
  played = make_games(setting, payoff)
  reply = jax.vmap(log_best_response)(played, log_p)
  wins = jnp.einsum('xa,xab,xb->x', jnp.exp(log_p), payoff, jnp.exp(reply))
  far = jax.vmap(kl)(log_p, setting.log_reference) - jax.vmap(kl)(reply, setting.log_reference)
  return payoff, reply, setting.prompts @ (wins - setting.tau * far)
