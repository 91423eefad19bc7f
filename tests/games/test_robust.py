"""The robust game, and MaxMin over groups: the numbers of shared/spec/methods.md, section 11."""

import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.games import asymmetric, exact, robust

pytestmark = pytest.mark.usefixtures('float64')
UNIFORM = np.full(3, 1 / 3)


def antisymmetric(*upper):
  """The payoff whose entries above the diagonal are these, row by row."""
  size = round((1 + (1 + 8 * len(upper)) ** 0.5) / 2)
  payoff = np.zeros((size, size))
  payoff[np.triu_indices(size, 1)] = upper
  return payoff - payoff.T


JUDGES = np.stack(
  [antisymmetric(-0.4, 0.3, -0.4), antisymmetric(0.1, 0.2, -0.3), antisymmetric(-0.1, 0.4, 0.1)]
)
WORST = JUDGES.min(axis=0)

MU = np.array([0.4, 0.3, 0.2, 0.1])
GROUPS = np.stack(
  [
    antisymmetric(*(np.array(upper) - 0.5))
    for upper in (
      (0.8, 0.7, 0.9, 0.6, 0.7, 0.8),
      (0.2, 0.3, 0.1, 0.7, 0.4, 0.3),
      (0.4, 0.1, 0.6, 0.2, 0.7, 0.9),
    )
  ]
)
REWARDS = GROUPS @ MU


def test_robust_game_guarantees_more_than_any_combination():
  found = robust.robust_game(JUDGES)
  np.testing.assert_allclose(found.policy, np.array([7, 4, 4]) / 15, atol=1e-9)
  assert found.value == pytest.approx(-0.08, abs=1e-10)
  assert (found.policy @ JUDGES).min() == pytest.approx(-0.08, abs=1e-10)
  np.testing.assert_allclose(found.adversary, [[0, 0.2, 0], [0.8, 0, 0], [0, 0, 0]], atol=1e-9)


def test_robust_game_with_a_price():
  game = robust.regularised_robust_game(JUDGES, UNIFORM, np.full((3, 3), 1 / 9), tau=0.1)
  found = asymmetric.equilibrium(game)
  expected = (0.4130126575, 0.3272623511, 0.2597249914)
  np.testing.assert_allclose(np.exp(found.pair.left), expected, atol=1e-10)


def test_worst_case_payoffs_are_a_game_without_symmetry():
  row, column, value = robust.solve_zero_sum(WORST)
  np.testing.assert_allclose(row, (0.2888888889, 0.4888888889, 0.2222222222), atol=1e-10)
  np.testing.assert_allclose(column, row[::-1], atol=1e-10)
  assert value == pytest.approx(-0.1377777778, abs=1e-10)
  log = np.log(UNIFORM)
  pair = asymmetric.equilibrium(asymmetric.AsymmetricGame(WORST, log, log, 0.1)).pair
  expected = (0.3546133055, 0.4114168844, 0.2339698101)
  np.testing.assert_allclose(np.exp(pair.left), expected, atol=1e-10)
  expected = (0.3311389725, 0.4492884240, 0.2195726035)
  np.testing.assert_allclose(np.exp(pair.right), expected, atol=1e-10)


def test_self_play_on_worst_case_payoffs_rests_elsewhere():
  policy = UNIFORM
  for _ in range(2_000):  # damped, towards pi = mu exp(W pi / tau) / Z
    reply = np.exp(WORST @ policy / 0.1)
    policy = 0.9 * policy + 0.1 * reply / reply.sum()
  expected = (0.3758763943, 0.4241427828, 0.1999808229)
  np.testing.assert_allclose(policy, expected, atol=1e-10)


@pytest.mark.parametrize('payoffs', [WORST[None], JUDGES.mean(0)[None] - JUDGES.std(0)])
def test_worst_case_payoffs_are_refused(payoffs):
  with pytest.raises(UserError, match='taken pair by pair are not antisymmetric'):
    robust.robust_game(payoffs)


@pytest.mark.parametrize(
  ('payoffs', 'reason'),
  [
    (JUDGES[0], r'payoffs of judges must be \[M, K, K\], not of shape \(3, 3\)'),
    (np.full((1, 2, 2), np.nan), 'must be finite'),
    (np.ones((1, 2, 2)), 'the payoff is not antisymmetric'),
  ],
)
def test_other_payoffs_are_refused(payoffs, reason):
  with pytest.raises(UserError, match=reason):
    robust.robust_game(payoffs)


def test_groups_have_the_rewards_of_the_specification():
  expected = [(0.17, -0.08, -0.08, -0.28), (-0.17, 0.15, 0, 0.23), (-0.1, 0, 0.29, -0.18)]
  np.testing.assert_allclose(REWARDS, expected, atol=1e-12)


@pytest.mark.parametrize(
  ('tau', 'weights', 'policy', 'payoff', 'value'),
  [
    (
      0.1,
      (0.4721762618, 0.4207044778, 0.1071192603),
      (0.3831903198, 0.3775800679, 0.1827111840, 0.0565184282),
      0.0044938943,
      0.0023315535,
    ),
    (
      0.02,
      (0.4859931369, 0.3696507341, 0.1443561290),
      (0.3619093021, 0.4757962615, 0.1608235815, 0.0014708550),
      0.0101831545,
      0.0073440138,
    ),
    (
      0.0,
      None,
      (0.3613406795, 0.4784205693, 0.1602387511, 0),
      0.0103351699,
      0.0103351699,
    ),
  ],
)
def test_maxmin_serves_all_groups_alike(tau, weights, policy, payoff, value):
  found = robust.maxmin(REWARDS, MU, tau)
  np.testing.assert_allclose(found.policy, policy, atol=1e-9)
  np.testing.assert_allclose(REWARDS @ found.policy, [payoff] * 3, atol=1e-9)
  assert found.value == pytest.approx(value, abs=1e-10)
  if weights:
    np.testing.assert_allclose(found.weights, weights, atol=1e-8)


def test_the_mean_of_groups_serves_one_of_them_worse():
  tilted = MU * np.exp(REWARDS.mean(axis=0) / 0.1)
  policy = tilted / tilted.sum()
  expected = (0.2571300745, 0.3398711848, 0.3613215334, 0.0416772072)
  np.testing.assert_allclose(policy, expected, atol=1e-10)
  gains = REWARDS @ policy
  np.testing.assert_allclose(gains, (-0.0240529228, 0.0168543227, 0.0715683399), atol=1e-10)
  worst = gains.min() - 0.1 * np.sum(policy * np.log(policy / MU))
  assert worst == pytest.approx(-0.0346545897, abs=1e-10)


def test_robust_game_of_groups_and_a_lottery_of_their_mean():
  found = robust.robust_game(GROUPS)
  np.testing.assert_allclose(found.policy, (0.2, 0.4, 0.4, 0), atol=1e-9)
  assert found.value == pytest.approx(-0.2, abs=1e-10)
  # Of the mean, b is a lottery, but not the only one: it ties with c.
  mean, second = GROUPS.mean(axis=0), np.array([0, 1, 0, 0])
  assert (mean @ second).max() < 1e-12
  assert abs(mean[1, 2]) < 1e-12
  assert not exact.is_unique_equilibrium(mean, exact.maximal_lottery(mean))
  np.testing.assert_allclose((second @ GROUPS).min(axis=1), (-0.3, -0.1, -0.3), atol=1e-10)


def test_in_self_play_no_group_wins():
  policy = np.array([0.1, 0.2, 0.3, 0.4])
  np.testing.assert_allclose(policy @ GROUPS @ policy, 0, atol=1e-15)


@pytest.mark.parametrize(
  ('rewards', 'tau', 'reason'),
  [
    ([[1.0, 0.0]], -0.1, 'tau=-0.1 must be at least 0, and finite'),
    ([1.0, 0.0], 0.1, r'rewards must have the shape \[groups, actions\], not \[2\]'),
  ],
)
def test_maxmin_refuses_what_it_cannot_use(rewards, tau, reason):
  with pytest.raises(UserError, match=reason):
    robust.maxmin(rewards, [0.5, 0.5], tau)
