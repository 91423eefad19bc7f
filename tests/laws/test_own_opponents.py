"""Groups of K samples, each against an opponent of its own: GRPO's advantages and their limits.

Numbers were computed apart to ten digits, on the cycle of `test_fixed_points`. The KL penalty stays
outside of the group, as in `standardised_self_play`, whose K samples are each other's opponents.
"""

import itertools

import numpy as np
import pytest
from scipy.optimize import brentq

from tests.laws import exact, theory
from tests.laws.test_groups_of_samples import (
  MU,
  NASH,
  PAYOFF,
  TAU,
  leave_one_out,
  less_mean,
  listed_groups,
  standardised,
)

pytestmark = pytest.mark.usefixtures('float64')


def own_payoffs(size):
  """Responses [n, K], each with its opponent's payoff [n, K]; pi -> their chances [n]."""
  groups = listed_groups(size)
  ours, theirs = np.repeat(groups, len(groups), axis=0), np.tile(groups, (len(groups), 1))
  return ours, PAYOFF[ours, theirs], lambda pi: np.prod(pi[ours] * pi[theirs], axis=1)


def own_votes(size):
  """The same with one vote, 1/2 or -1/2, for or against each response."""
  groups, votes = listed_groups(size), np.array(list(itertools.product((0.5, -0.5), repeat=size)))
  ours, votes = np.repeat(groups, len(votes), axis=0), np.tile(votes, (len(groups), 1))

  def chances(pi):
    wins = (exact.CYCLE @ pi)[ours]
    return np.prod(pi[ours] * np.where(votes > 0, wins, 1 - wins), axis=1)

  return ours, votes, chances


def payoff_force(listed, advantages):
  """pi -> E[1/K sum_k A_k grad log pi(y_k)], by the logits."""
  ours, _, chances = listed
  by_action = np.stack([np.where(ours == a, advantages, 0).mean(axis=1) for a in range(3)], axis=1)
  mean = advantages.mean(axis=1)

  def force(pi):
    chance = chances(pi)
    return chance @ by_action - pi * (chance @ mean)

  return force


def find_rest(force, tau=TAU):
  """Where the force balances tau KL(pi, mu)."""

  def residual(log_pi, preference, mu, shares):
    del preference, shares
    pi, rho = np.exp(log_pi), log_pi - np.log(mu)
    return force(pi) - tau * pi * (rho - pi @ rho)

  return theory.balanced(residual)(exact.CYCLE, MU)


@pytest.mark.parametrize(
  ('listed', 'size', 'rests'),
  [
    (
      own_payoffs,
      2,
      ((0.3286997583, 0.2285043723, 0.4427958694), (0.3047141031, 0.2343284178, 0.4609574791)),
    ),
    (
      own_payoffs,
      4,
      ((0.3304933112, 0.2742467855, 0.3952599033), (0.3255609713, 0.2742004793, 0.4002385494)),
    ),
    (own_votes, 2, (NASH[0.1], (0.2445843303, 0.3004063439, 0.4550093258))),
    (
      own_votes,
      4,
      ((0.3091040315, 0.2676035979, 0.4232923706), (0.3001527979, 0.2697550059, 0.4300921962)),
    ),
  ],
)
def test_standardised_advantages_against_own_opponents(listed, size, rests):
  table = listed(size)
  for ddof, expected in enumerate(rests):
    found = find_rest(payoff_force(table, standardised(table[1], ddof)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=6e-11)


@pytest.mark.parametrize(
  ('advantages', 'rests'),
  [
    # The payoff alone shrinks by (K - 1) / K, and the penalty outside of the group does not.
    (less_mean, {2: NASH[0.2], 4: NASH[2 / 15]}),
    (leave_one_out, {2: NASH[0.1], 4: NASH[0.1]}),
  ],
)
def test_baselines_of_groups_with_own_opponents(advantages, rests):
  for size, expected in rests.items():
    table = own_payoffs(size)
    found = find_rest(payoff_force(table, advantages(table[1])))
    np.testing.assert_allclose(found, expected, rtol=0, atol=6e-11)


def test_the_direction_with_own_opponents_is_not_that_of_the_payoff():
  table = own_payoffs(2)
  found = payoff_force(table, standardised(table[1], 0))(MU)
  np.testing.assert_allclose(found, (-0.0486, -0.0375, 0.0861), rtol=0, atol=1e-12)


# --- Limits ---


def test_margins_are_lost_on_the_lottery_of_signs():
  rest = theory.regularised(0.02)(0.5 + np.sign(PAYOFF), MU)
  np.testing.assert_allclose(theory.gap(exact.CYCLE, rest), 0.0668, rtol=0, atol=5e-5)


def test_many_votes_halve_the_penalty():
  """In self-play the variance of a vote is 1/4 in the mean, so that A = 2 (vote - 1/2)."""
  large = find_rest(lambda pi: 2 * pi * (PAYOFF @ pi))
  np.testing.assert_allclose(large, NASH[0.05], rtol=0, atol=6e-11)
  distances = []
  for size in (2, 4, 6):
    table = own_votes(size)
    rest = find_rest(payoff_force(table, standardised(table[1], 0)))
    distances.append(abs(rest - large).max())
  assert distances[0] > 2 * distances[1] > 2.5 * distances[2]


def spread(values, pi):
  return np.sqrt(pi @ values**2 - (pi @ values) ** 2)


def test_many_payoffs_scale_the_penalty_by_their_spread():
  """A = a / sd(a): the rest is N(t) with t = tau sd(a) at N(t)."""
  nash = lambda t: theory.regularised(t)(exact.CYCLE, MU)

  def excess(t):
    pi = nash(t)
    return t - TAU * spread(PAYOFF.ravel(), np.outer(pi, pi).ravel())

  t = brentq(excess, 0.02, 0.04, xtol=1e-13)
  np.testing.assert_allclose(t, 0.0294240854, rtol=0, atol=6e-11)
  expected = (0.3394095708, 0.2659165879, 0.3946738413)
  np.testing.assert_allclose(nash(t), expected, rtol=0, atol=6e-11)


def test_exact_mean_payoffs_let_the_penalty_vanish():
  """A = u / (sd(u) + epsilon), where u = t rho at rest: t = tau epsilon / (1 - tau sd(rho))."""
  epsilon, t = 1e-4, 1e-3
  for _ in range(3):
    pi = theory.regularised(t)(exact.CYCLE, MU)
    t = TAU * epsilon / (1 - TAU * spread(np.log(pi / MU), pi))
  assert f'{t:.3g}' == '1.05e-05'
  u = PAYOFF @ pi
  np.testing.assert_allclose(TAU * (spread(u, pi) + epsilon), t, rtol=1e-6)
