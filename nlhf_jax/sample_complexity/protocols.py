"""The measurements for one seed, which are vmapped over seeds and compiled once.

Numbers of votes, tau and enhancers are arguments of the compiled program, not constants.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from nlhf_jax.ranges import AtLeastOne, NonNegative
from nlhf_jax.sample_complexity import offline, online, rates, votes
from nlhf_jax.sample_complexity.classes import Preference
from nlhf_jax.sample_complexity.links import Link, log_odds
from nlhf_jax.sample_complexity.online import Course
from nlhf_jax.sample_complexity.setting import Setting, divergence, equilibrium, gap
from nlhf_jax.sample_complexity.unstructured import tabular
from nlhf_jax.sample_complexity.worlds import World

STRATEGIES = ('information', 'optimistic', 'self-play', 'reference', 'best of n')


def plug_in(
  world: World,
  link: Link,
  setting: Setting,
  preference: Preference,
  samples: Float[Array | np.ndarray, 'R'],
  key: PRNGKeyArray,
) -> tuple[Float[Array, 'R'], Float[Array, 'R']]:
  """The gap of the plug-in equilibrium by number of votes, measured and by `rates.plug_in_gap`.

  All pairs are compared equally often.
  """
  payoff, design = link.payoff(preference), votes.uniform_design(setting)

  def one(size):
    wins = votes.sample_wins(key, preference, jnp.round(size * design))
    estimated = link.payoff(world.members.estimate(wins))
    log_pi = equilibrium(setting, estimated)
    found = gap(setting, payoff, log_pi)
    return found, rates.plug_in_gap(setting, payoff, estimated, log_pi)

  return jax.vmap(one)(samples)


class Offline(NamedTuple):
  """A quantity of each offline learner, by number of votes."""

  plug_in: Float[Array, 'R']
  bonus: Float[Array, 'R']
  version_space: Float[Array, 'R']


def learn_offline(
  world: World,
  link: Link,
  setting: Setting,
  others: ArrayLike,
  *,
  beta: NonNegative,
  updates: AtLeastOne,
  samples: Float[Array | np.ndarray, 'R'],
  key: PRNGKeyArray,
) -> tuple[Offline, Offline]:
  """Offline learning of a random truth, with most votes on pairs with its safest action.

  The safest action has the best worst case: it is the one that beats all others if there is one.

  Args:
    world: class and truths.
    link: win probability -> payoff.
    setting: prompts, reference and tau.
    others: weight in the data of pairs without that action; pairs with it have weight 1.
    beta: multiple of the bonus; the version space has errors up to beta^2.
    updates: of the ascent in the version space.
    samples: numbers of votes.
    key: random key of truth and votes.

  Returns:
    Gaps, and the remaining gap of each learner in its own game, in the same unit.
  """
  first, second = jax.random.split(key)
  preference = world.draw(first)
  payoff = link.payoff(preference)
  safest = jnp.argmax(preference[0].min(axis=1))
  design = votes.design_around_action(setting, safest, others)

  def one(size):
    wins = votes.sample_votes(second, preference, design, size)
    counts, estimate = votes.comparison_counts(wins), world.members.estimate(wins)
    seen = world.members, setting, link, estimate, counts
    budget = world.members.error(estimate, counts, estimate) + beta**2
    found = (
      offline.plug_in(setting, link, estimate),
      offline.learn_with_bonus(*seen, beta),
      offline.learn_in_version_space(*seen, budget, updates),
    )
    gaps = Offline(*(gap(setting, payoff, learned.log_pi) for learned in found))
    return gaps, Offline(*(learned.left for learned in found))

  return jax.vmap(one)(samples)


def learn_online(
  world: World,
  link: Link,
  setting: Setting,
  strategy: Int[Array, ''] | int,
  *,
  beta: NonNegative,
  responses: AtLeastOne,
  batch: AtLeastOne,
  rounds: AtLeastOne,
  key: PRNGKeyArray,
) -> Course:
  """Online learning of a random truth with one of the `STRATEGIES`, by its number."""
  first, second = jax.random.split(key)
  enhancers = (
    online.information_enhancer(world.members, setting, link, batch),
    online.optimistic_enhancer(world.members, setting, link, beta),
    online.greedy_enhancer(),
    online.reference_enhancer(setting),
    online.best_of_enhancer(link, responses),
  )
  enhancer = lambda *seen: lax.switch(strategy, enhancers, *seen)
  preference = world.draw(first)
  return online.run_rounds(
    world.members, setting, link, preference, enhancer, batch, rounds, second
  )


class RewardGaps(NamedTuple):
  """The shortfall of the regularised reward, by number of votes."""

  fitted: Float[Array, 'R']  # plug-in with the class of Bradley-Terry preferences
  tabular: Float[Array, 'R']  # plug-in with the class of all preferences


def learn_rewards(
  world: World, setting: Setting, samples: Float[Array | np.ndarray, 'R'], key: PRNGKeyArray
) -> RewardGaps:
  """E r - tau KL(pi, reference) of the optimum minus that of the learned policy.

  The truth has rewards, and payoffs are log-odds, so that the equilibrium is the optimum
  mu exp(r / tau) / Z, and the shortfall is tau KL(pi, optimum).
  """
  first, second = jax.random.split(key)
  preference, link = world.draw(first), log_odds()
  reward = link.payoff(preference)[..., -1]
  optimum = jax.nn.log_softmax(setting.log_reference + reward / setting.tau)
  design = votes.uniform_design(setting)

  def one(size):
    wins = votes.sample_votes(second, preference, design, size)

    def shortfall(members):
      log_pi = equilibrium(setting, link.payoff(members.estimate(wins)))
      return setting.tau * divergence(setting, log_pi, optimum)

    return RewardGaps(shortfall(world.members), shortfall(tabular(1.0)))

  return jax.vmap(one)(samples)
