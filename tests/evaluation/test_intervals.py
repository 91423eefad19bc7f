"""Intervals of win rates, Holm's correction and rankings, against scipy and by simulation."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from nlhf_jax.evaluation import intervals, ranking, tournament


@pytest.mark.parametrize(('wins', 'count'), [(0, 7), (7, 7), (3, 7), (481, 805)])
def test_clopper_pearson_equals_scipys(wins, count):
  expected = stats.binomtest(wins, count).proportion_ci(method='exact')
  np.testing.assert_allclose(intervals.clopper_pearson(np.int64(wins), count), expected)


def test_ties_widen_the_exact_interval():
  values = np.array([0.9, 0.2, 0.5])
  low, _ = intervals.clopper_pearson(np.int64(1), 3)
  _, high = intervals.clopper_pearson(np.int64(2), 3)
  np.testing.assert_allclose(intervals.verdict_interval(values), (low, high))


def test_bootstrap_is_paired():
  values = np.random.default_rng(0).uniform(size=(200, 1))
  means = intervals.bootstrap_means(np.concatenate([values, values + 0.1], axis=1))
  np.testing.assert_allclose(means[:, 1] - means[:, 0], 0.1)
  np.testing.assert_allclose(means[:, 0].std(), values.std() / np.sqrt(200), rtol=0.1)


def test_p_values_equal_scipys():
  values = np.random.default_rng(1).uniform(0.4, 0.65, (30, 4))
  values[:, 3] = 0.5
  expected = stats.ttest_1samp(values[:, :3], 0.5).pvalue
  np.testing.assert_allclose(intervals.p_values(values), [*expected, 1])


def test_holms_correction_equals_hand_calculation():
  np.testing.assert_allclose(
    intervals.holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02]
  )


def test_holm_controls_the_familywise_error():
  values = np.random.default_rng(2).binomial(1, 0.5, (150, 500, 6))  # 500 tournaments of 6 pairs
  wrong = [intervals.holm(p).min() < 0.05 for p in intervals.p_values(values.astype(float))]
  assert np.mean(wrong) == pytest.approx(0.04, abs=0.025)


def matches(random, strengths, count):
  """Wins on each prompt, [n, M, M], of policies that have strengths."""
  chance = expit(strengths[:, None] - strengths)
  won = np.triu((random.random((count, *chance.shape)) < chance).astype(float), 1)
  below = np.tril(1 - won.swapaxes(1, 2), -1)
  return won + below + np.eye(len(strengths)) / 2


def test_bradley_terry_errors_cover_the_strengths():
  random, strengths = np.random.default_rng(3), np.array([0.9, 0.1, -0.3, -0.7])
  found, errors = zip(
    *(ranking.bradley_terry(matches(random, strengths, 150)) for _ in range(40)), strict=True
  )
  far = (np.array(found) - strengths) / np.array(errors)
  np.testing.assert_allclose(np.mean(found, axis=0), strengths, atol=0.05)
  assert np.mean(abs(far) < 1.96) == pytest.approx(0.95, abs=0.05)


def test_policy_that_always_wins_has_a_strength():
  values = matches(np.random.default_rng(4), np.array([50.0, 0.0, 0.0]), 40)
  strength, error = ranking.bradley_terry(values)
  assert np.all(np.isfinite([strength, error]))
  # 40 wins and half a draw to half a draw, less a third of it, which makes the mean 0.
  assert strength[0] == pytest.approx(np.log(81) * 2 / 3, abs=0.05)


def test_borda_count_is_the_mean_over_others():
  values = matches(np.random.default_rng(5), np.array([1.0, 0.0, -1.0]), 50)
  count, error = ranking.borda(values)
  first = (values[:, 0, 1] + values[:, 0, 2]) / 2
  assert count[0] == pytest.approx(first.mean())
  assert error[0] == pytest.approx(first.std(ddof=1) / np.sqrt(50))


def test_cycle_has_its_weakest_link():
  rate = np.full((4, 4), 0.5)
  for i, j, p in ((0, 1, 0.8), (1, 2, 0.7), (2, 0, 0.6), (0, 3, 0.9), (1, 3, 0.9), (2, 3, 0.9)):
    rate[i, j], rate[j, i] = p, 1 - p
  random = np.random.default_rng(6)
  won = np.triu((random.random((400, 4, 4)) < rate).astype(float), 1)
  values = won + np.tril(1 - won.swapaxes(1, 2), -1) + np.eye(4) / 2
  found = ranking.cycles(list('abcd'), tournament.tabulate(values))
  assert found['count'] == 1
  (cycle,) = found['first']
  assert cycle['policies'] == ['a', 'b', 'c']
  assert cycle['weakest'] == pytest.approx(values[:, 2, 0].mean())
  assert cycle['significant']
  few = ranking.cycles(list('abcd'), tournament.tabulate(values[:6]))
  assert not any(cycle['significant'] for cycle in few['first'])


def test_significant_pairs_with_and_without_correction():
  random = np.random.default_rng(7)
  table = tournament.tabulate(matches(random, np.array([0.35, 0.1, 0.0, 0.0, -0.2]), 200))
  pairs = table['pairs']
  assert pairs['count'] == 10
  assert pairs['significant_holm'] < pairs['significant'] < 10
  for kind in ('bootstrap_', 'clopper_pearson_', ''):
    low, rate, high = (np.array(table[name]) for name in (f'{kind}low', 'win_rate', f'{kind}high'))
    assert np.all((low <= rate + 1e-9) & (rate <= high + 1e-9))
    np.testing.assert_allclose(low + high.T, 1, atol=0.02)


def test_one_policy_alone_is_first():
  (row,) = ranking.rank(['a'], np.full((3, 1, 1), 0.5))
  assert (row['policy'], row['lottery'], row['bradley_terry']) == ('a', 1, 0)
