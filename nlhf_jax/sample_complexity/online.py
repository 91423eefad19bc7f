"""Online learning: votes compare a main agent with an enhancer, which is chosen to be informative.

The main agent is the equilibrium of the estimate, without a bonus. The enhancer need not be a good
policy; it is chosen so that comparisons with it reduce the uncertainty. Neither depends on the true
preferences.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from nlhf_jax.games.game import log_best_response
from nlhf_jax.sample_complexity import votes
from nlhf_jax.sample_complexity.classes import (
  Counts,
  Preference,
  PreferenceClass,
  information_ratio,
  most_informative_opponent,
)
from nlhf_jax.sample_complexity.links import Link
from nlhf_jax.sample_complexity.setting import Setting, equilibrium, gap, make_games

LogPolicy = Float[Array, 'X K']
# (estimate, counts so far, main agent) -> the policy that the second response comes from.
Enhancer = Callable[[Preference, Counts, LogPolicy], LogPolicy]


def information_enhancer(
  members: PreferenceClass, setting: Setting, link: Link, batch: int
) -> Enhancer:
  """argmax over q of Gamma_t(pi, q), where a batch of votes counts as one vote."""

  def choose(estimate, counts, log_pi):
    return most_informative_opponent(members, setting, link, estimate, counts / batch, log_pi)

  return choose


def optimistic_enhancer(
  members: PreferenceClass, setting: Setting, link: Link, beta: float
) -> Enhancer:
  """argmin over q of E[P - beta Gamma](pi, q) + tau KL(q, reference).

  The best response under an optimistic estimate of its wins.
  """

  def choose(estimate, counts, log_pi):
    payoff = link.payoff(estimate - beta * members.bonus(estimate, counts))
    losses = jnp.einsum('xa,xab->xb', jnp.exp(log_pi), payoff)
    return jax.nn.log_softmax(setting.log_reference - losses / setting.tau)

  return choose


def greedy_enhancer() -> Enhancer:
  """The main agent itself: symmetric self-play."""
  return lambda estimate, counts, log_pi: log_pi


def reference_enhancer(setting: Setting) -> Enhancer:
  """The reference policy."""
  return lambda estimate, counts, log_pi: setting.log_reference


def best_of_enhancer(link: Link, responses: int) -> Enhancer:
  """The best of some responses of the main agent, by the estimated win rate against it.

  The distribution of the best of n independent samples: (below + same)^n - below^n, by score.
  """

  def choose(estimate, counts, log_pi):
    pi = jnp.exp(log_pi)
    score = jnp.einsum('xab,xb->xa', link.payoff(estimate), pi)
    below = jnp.einsum('xab,xb->xa', (score[:, :, None] > score[:, None]).astype(pi.dtype), pi)
    same = jnp.einsum('xab,xb->xa', (score[:, :, None] == score[:, None]).astype(pi.dtype), pi)
    tilt = ((below + same) ** responses - below**responses) / jnp.where(same > 0, same, 1)
    return jnp.where(same > 0, log_pi + jnp.log(tilt), -jnp.inf)  # underflow has probability 0

  return choose


class Course(NamedTuple):
  """Measurements of T rounds, each before the votes of that round are added.

  Widths are of the main agent against its enhancer unless noted. The gap is at most sqrt(error)
  times `reply_width`, which is at most the `width` of the most informative enhancer.
  """

  log_pi: Float[Array, 'T X K']  # the main agent
  gap: Float[Array, 'T']  # of the main agent
  left: Float[Array, 'T']  # gap under its own estimate: what Newton's method left
  error: Float[Array, 'T']  # of the truth; a batch counts as one vote
  width: Float[Array, 'T']  # Gamma_t; a batch counts as one vote
  reply_width: Float[Array, 'T']  # Gamma_t of the main agent against the true best response
  expected_width: Float[Array, 'T']  # Gamma_t by the expected counts of the rounds before
  expected_counts: Float[Array, 'X K K']  # after all rounds, a batch counting as one vote
  wins: Float[Array, 'X K K']  # after all rounds


def run_rounds(
  members: PreferenceClass,
  setting: Setting,
  link: Link,
  preference: Preference,
  enhancer: Enhancer,
  batch: int,
  rounds: int,
  key: PRNGKeyArray,
) -> Course:
  """T rounds of estimating, solving, and sampling a batch of votes; can be vmapped.

  Args:
    members: the class of preferences.
    setting: prompts, reference and tau.
    link: win probability -> payoff.
    preference: the truth, which only votes and measurements depend on.
    enhancer: the policy that the main agent is compared with.
    batch: votes per round.
    rounds: number of rounds.
    key: random key of the votes.
  """
  payoff = link.payoff(preference)

  def one(carry, key):
    wins, expected = carry
    counts, estimate = votes.comparison_counts(wins), members.estimate(wins)
    estimated = link.payoff(estimate)
    log_pi = equilibrium(setting, estimated)
    log_q = enhancer(estimate, counts, log_pi)
    reply = jax.vmap(log_best_response)(make_games(setting, payoff), log_pi)
    ratio = lambda counts, log_q: information_ratio(
      members, setting, link, estimate, counts, log_pi, log_q
    )
    seen = (
      log_pi,
      gap(setting, payoff, log_pi),
      gap(setting, estimated, log_pi),
      members.error(estimate, counts / batch, preference),
      ratio(counts / batch, log_q),
      ratio(counts / batch, reply),
      ratio(expected, log_q),
    )
    design = votes.design_from_policies(setting, log_pi, log_q)
    return (wins + votes.sample_few_votes(key, preference, design, batch), expected + design), seen

  nothing = jnp.zeros_like(preference)
  keys = jax.random.split(key, rounds)
  (wins, expected), seen = lax.scan(one, (nothing, nothing), keys)
  return Course(*seen, expected, wins)
