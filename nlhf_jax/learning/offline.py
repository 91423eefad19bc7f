"""Learning from votes that are there already: plug-in, and two ways to be pessimistic.

A pessimist charges a policy for what data leave open about it, and so prefers what they cover.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from nlhf_jax.games import asymmetric
from nlhf_jax.games.asymmetric import AsymmetricGame
from nlhf_jax.games.game import kl, log_best_response
from nlhf_jax.learning.classes import Counts, Preference, PreferenceClass
from nlhf_jax.learning.links import Link
from nlhf_jax.learning.setting import Setting, duel, equilibrium, games


def plug_in(setting: Setting, link: Link, estimate: Preference) -> Float[Array, 'X K']:
  """The equilibrium of the estimate, as if it were the truth; log-probabilities."""
  return equilibrium(setting, link.payoff(estimate))


def with_bonus(
  members: PreferenceClass,
  setting: Setting,
  link: Link,
  estimate: Preference,
  counts: Counts,
  beta: Float[Array, ''] | float,
) -> Float[Array, 'X K']:
  """Option II: the max player's side of the game of P - beta Gamma, which is not symmetric.

  If beta^2 is at least the error of the truth, then
  G <= 2 beta max over q of E_{a ~ pi*, b ~ q} Gamma(a, b), in probabilities.

  Args:
    members: the class, for the bonus Gamma(a, b) of every pair.
    setting: prompts, reference and tau.
    link: what a probability is worth; of log-odds the bound on P is taken, and then its worth.
    estimate: of the preferences.
    counts: of comparisons.
    beta: how many Gammas the truth may be off.
  """
  payoff = link.payoff(estimate - beta * members.bonus(estimate, counts))
  itself = jnp.eye(payoff.shape[-1], dtype=bool)
  payoff = jnp.where(itself, 0, payoff)

  def solve(payoff, log_reference):
    game = AsymmetricGame(payoff, log_reference, log_reference, setting.tau)
    return asymmetric.equilibrium(game).pair.left

  return jax.vmap(solve)(payoff, setting.log_reference)


class Pessimist(NamedTuple):
  """The policy of the version space, and what it wins at worst, less 1/2, as far as was found."""

  log_pi: Float[Array, 'X K']
  value: Float[Array, '']


def version_space(
  members: PreferenceClass,
  setting: Setting,
  link: Link,
  estimate: Preference,
  counts: Counts,
  budget: Float[Array, ''],
  updates: int = 400,
) -> Pessimist:
  """Option I: max over p, min over q and over members P within the budget, of J_P(p, q).

  A concave maximum, climbed by mirror ascent along the payoff of the worst member found; its step
  falls, and the best policy on the way is kept. The minimum is no convex problem: it is followed
  from every vertex q, a step of `respond` each update, and the reference.

  Args:
    members: the class.
    setting: prompts, reference and tau.
    link: what a probability is worth.
    estimate: of the preferences, about which the members lie.
    counts: of comparisons.
    budget: the largest error of a member, such as `members.radius`.
    updates: steps of mirror ascent.
  """

  def one(count, carry):
    log_pi, opponents, best = carry
    payoffs, opponents, values = jax.vmap(
      lambda log_q: respond(members, setting, link, estimate, counts, budget, log_pi, log_q)
    )(opponents)
    least = jnp.argmin(values)
    best = jax.tree.map(
      lambda new, old: jnp.where(values[least] > best.value, new, old),
      Pessimist(log_pi, values[least]),
      best,
    )
    step = 1 / (setting.tau * (count + 2.0) + 0.05 * jnp.sqrt(count + 1.0))
    gains = jnp.einsum('xab,xb->xa', payoffs[least], jnp.exp(opponents[least]))
    pull = setting.tau * (setting.log_reference - log_pi)
    return jax.nn.log_softmax(log_pi + step * (gains + pull)), opponents, best

  start = plug_in(setting, link, estimate)
  carry = start, starts(setting), Pessimist(start, jnp.asarray(-jnp.inf, start.dtype))
  carry = lax.fori_loop(0, updates, one, carry)
  return one(updates, carry)[2]


def starts(setting: Setting) -> Float[Array, 'S X K']:
  """Opponents to begin with: every action, all but surely, and the reference."""
  actions = setting.log_reference.shape[-1]
  corners = 0.99 * jnp.eye(actions)[:, None] + 0.01 * jnp.exp(setting.log_reference)
  return jnp.concatenate([jnp.log(corners), setting.log_reference[None]])


def respond(
  members: PreferenceClass,
  setting: Setting,
  link: Link,
  estimate: Preference,
  counts: Counts,
  budget: Float[Array, ''],
  log_p: Float[Array, 'X K'],
  log_q: Float[Array, 'X K'],
) -> tuple[Float[Array, 'X K K'], Float[Array, 'X K'], Float[Array, '']]:
  """The worst member for p against q, the best reply to p under it, and what p then wins.

  The value is of the pair returned. Where the link is linear, repeating the step never raises it;
  else the member is the worst to first order.
  """
  weights = duel(setting, log_p, log_q) * link.slope(estimate)
  payoff = link.payoff(members.worst(estimate, counts, weights, budget))
  played = games(setting, payoff)
  reply = jax.vmap(log_best_response)(played, log_p)
  wins = jnp.einsum('xa,xab,xb->x', jnp.exp(log_p), payoff, jnp.exp(reply))
  far = jax.vmap(kl)(log_p, setting.log_reference) - jax.vmap(kl)(reply, setting.log_reference)
  return payoff, reply, setting.prompts @ (wins - setting.tau * far)
