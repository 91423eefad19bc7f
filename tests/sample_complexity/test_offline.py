"""Pessimism: against brute force on grids, and the guarantees as inequalities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.games import matrices
from nlhf_jax.sample_complexity import offline, votes
from nlhf_jax.sample_complexity.classes import (
  coverage,
  information_ratio,
  most_informative_opponent,
)
from nlhf_jax.sample_complexity.links import log_odds, probability
from nlhf_jax.sample_complexity.setting import duel_weights, equilibrium, gap, single_prompt
from nlhf_jax.sample_complexity.unstructured import tabular

pytestmark = pytest.mark.usefixtures('float64')

LINK, MEMBERS = probability(), tabular(1.0)
TAU = 0.1
GRID = np.array([(i, j, 20 - i - j) for i in range(21) for j in range(21 - i)]) / 20


def three_actions():
  """A cycle of three actions, of which one pair is hardly covered."""
  preference = 0.5 + jnp.asarray(matrices.rock_paper_scissors(0.1, 0.3, 0.2))[None]
  counts = jnp.array([[[0, 20.0, 1], [20, 0, 8], [1, 8, 0]]])
  wins = jnp.array([[[0, 9.0, 1], [11, 0, 5], [0, 3, 0]]])
  assert (votes.comparison_counts(wins) == counts).all()
  return single_prompt(jnp.log(jnp.array([0.5, 0.3, 0.2])), TAU), preference, wins, counts


def logs(policies):
  with np.errstate(divide='ignore'):
    return jnp.log(policies)


def kl_penalties(setting):
  """tau KL(p, reference) on the grid."""
  p = np.maximum(GRID, 1e-300)
  return TAU * (GRID * (np.log(p) - np.asarray(setting.log_reference[0]))).sum(axis=1)


def test_version_space_learner_equals_a_grid_search():
  """No policy of a grid of 231 has a larger worst case, over all q of the grid and all members.

  The worst case found for the answer is below that of the grid, where it may only be too large.
  """
  setting, _, wins, counts = three_actions()
  estimate, budget = MEMBERS.estimate(wins), jnp.asarray(1.5)
  penalty = kl_penalties(setting)

  @jax.jit
  def least(log_p):
    def one(log_q):
      weights = duel_weights(setting, log_p, log_q[None])
      worst = MEMBERS.worst(estimate, counts, weights, budget)
      return jnp.exp(log_p[0]) @ (worst[0] - 0.5) @ jnp.exp(log_q)

    return (jax.vmap(one)(logs(GRID)) + penalty).min()

  values = jax.lax.map(lambda p: least(p[None]), logs(GRID)) - penalty

  @jax.jit
  def solve(updates):
    return offline.learn_in_version_space(MEMBERS, setting, LINK, estimate, counts, budget, updates)

  found = solve(400)
  far = TAU * (jnp.exp(found.log_pi) * (found.log_pi - setting.log_reference)).sum()
  worst = least(found.log_pi) - far
  assert found.value <= worst + 1e-9
  assert worst - found.value < 2e-3  # and not by much: the grid is fine enough
  assert worst >= values.max() - 1e-9
  assert values.max() > values[np.argmin(penalty)] + 0.001  # the problem is not trivial
  # `left` is at least the gain of more updates, and falls with them.
  few, many = solve(10), solve(4000)
  for less, more in ((few, found), (found, many)):
    assert 0 <= more.value - less.value <= less.left + 1e-12
    assert 0 < more.left < less.left / 3


@pytest.mark.parametrize('link', [LINK, log_odds(3.0)], ids=['probability', 'log_odds'])
def test_bonus_learner_equals_a_grid_search(link):
  """No policy of the grid does better in P - beta Gamma against its best response."""
  setting, _, wins, counts = three_actions()
  estimate = MEMBERS.estimate(wins)
  found = offline.learn_with_bonus(MEMBERS, setting, link, estimate, counts, 0.7)
  log_pi = found.log_pi
  payoff = np.array(link.payoff(estimate - 0.7 * MEMBERS.bonus(estimate, counts))[0])
  np.fill_diagonal(payoff, 0)
  reference = np.exp(setting.log_reference[0])

  def value(p, penalty):
    return -TAU * np.log(np.exp(-(p @ payoff) / TAU) @ reference) - penalty

  p = np.exp(log_pi[0])
  best = value(p, TAU * (p * (log_pi[0] - setting.log_reference[0])).sum())
  grid = [value(p, penalty) for p, penalty in zip(GRID, kl_penalties(setting), strict=True)]
  assert max(grid) <= best + 1e-12
  assert max(grid) > best - 0.005
  np.testing.assert_allclose(found.value, best, rtol=1e-12)
  assert 0 <= found.left < 1e-12
  plain = offline.learn_with_bonus(MEMBERS, setting, link, estimate, counts, 0.0)
  learnt = offline.plug_in(setting, link, estimate)
  np.testing.assert_allclose(np.exp(plain.log_pi), np.exp(learnt.log_pi), atol=1e-6)
  assert abs(plain.value) < 1e-12 > abs(learnt.value)


@pytest.mark.slow
def test_both_pessimists_keep_their_guarantees():
  """200 draws of 3e7 votes on a random game, the pairs with its best action covered 50 times
  better: enough that the bounds say something, as the reference is further off than they allow.

  Option I: G <= 4 beta sqrt(C / n), beta^2 / 2 the radius at delta = 0.1, in at least 1 - delta of
  the runs; and whenever the truth is in the set, G <= 2 sqrt(radius) max_q Gamma(pi*, q), up to
  what the ascent left. Option II: G <= 2 beta max_q E Gamma(a, b), always, if beta^2 is the
  error of the truth.
  """
  actions, size, delta = 4, 3e7, 0.1
  setting = single_prompt(jnp.full(actions, -np.log(actions)), TAU)
  preference = 0.5 + jnp.asarray(matrices.random(actions, 3, (1,)))
  payoff = LINK.payoff(preference)
  nash = equilibrium(setting, payoff)
  design = votes.design_around_action(setting, int(jnp.argmax(nash)), 0.02)

  @jax.jit
  @jax.vmap
  def one(key):
    wins = votes.sample_votes(key, preference, design, size)
    counts, estimate = votes.comparison_counts(wins), MEMBERS.estimate(wins)
    seen = MEMBERS, setting, LINK, estimate, counts
    radius, error = MEMBERS.radius(estimate, counts, delta), MEMBERS.error(*seen[3:], preference)
    found = offline.learn_in_version_space(*seen, radius, updates=100)
    charged = offline.learn_with_bonus(*seen, jnp.sqrt(error))
    against = information_ratio(*seen, nash, most_informative_opponent(*seen, nash))
    single = (jnp.exp(nash[0]) @ MEMBERS.bonus(estimate, counts)[0]).max()
    return (
      gap(setting, payoff, found.log_pi),
      found.left,
      2 * jnp.sqrt(radius) * against,
      error <= radius,
      gap(setting, payoff, charged.log_pi),
      2 * jnp.sqrt(error) * single,
      radius,
    )

  keys = jax.random.split(jax.random.key(0), 200)
  first, left, bound, inside, second, charge, radius = map(np.asarray, one(keys))
  needed = coverage(tabular(0.0), setting, LINK, preference, design, nash)
  theorem = 4 * np.sqrt(2 * radius * needed / size)
  bad = gap(setting, payoff, setting.log_reference)
  assert theorem.max() < bad > max(bound.max(), charge.max())
  assert (first <= theorem).mean() >= 1 - delta
  assert inside.mean() >= 1 - delta
  assert (first <= bound + left)[inside].all()
  assert (second <= charge).all()
  assert (first > 0).all()
