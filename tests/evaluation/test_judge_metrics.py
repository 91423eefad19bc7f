"""Metrics of judges against values by hand and a population with known preferences."""

import numpy as np
import pytest
from scipy import special, stats

from nlhf_jax.evaluation import judge_metrics, transitivity
from nlhf_jax.evaluation.judge_metrics import JudgedComparisons


def by_hand():
  """Right, wrong, a tie of the judge, a tie of the votes; the second depends on the order."""
  return JudgedComparisons(
    left_first=np.array([0.9, 0.7, 0.6, 0.8]),
    right_first=np.array([0.7, 0.4, 0.4, 0.6]),
    probability=np.array([0.8, 0.55, 0.5, 0.7]),
    votes=np.array([1.0, 0.0, 1.0, 0.5]),
    lengths=np.array([[5, 3], [2, 4], [7, 7], [1, 9]]),
  )


def test_metrics_of_four_comparisons_equal_hand_calculation():
  found = judge_metrics.summarise(by_hand())
  probability = [0.8, 0.55, 0.5, 0.7]
  assert found['comparisons'] == 4
  assert found['accuracy'] == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
  loss = np.log(0.8) + np.log(0.45) + np.log(0.5) + (np.log(0.7) + np.log(0.3)) / 2
  assert found['log_loss'] == pytest.approx(-loss / 4)
  squares = [(p - v) ** 2 for p, v in zip(probability, [1, 0, 1, 0.5], strict=True)]
  assert found['brier'] == pytest.approx(np.mean(squares))
  assert found['consistency'] == 2 / 4
  assert found['first_place'] == pytest.approx((0.2 + 0.3 + 0.2 + 0.2) / 8)
  assert found['longer'] == pytest.approx((0.8 + 0.45 + 0.3) / 3)
  assert found['longer_votes'] == pytest.approx((1 + 1 + 0.5) / 3)
  errors = [abs(0.8 - 1), abs(0.55 - 0), 0, abs(0.7 - 0.5)]
  assert found['calibration_error'] == pytest.approx(np.mean(errors))


def test_accuracy_interval_covers_at_its_level():
  random, truth, covered = np.random.default_rng(0), 0.7, 0
  for _ in range(400):
    right = random.random(60) < truth
    votes = np.where(right, 1.0, 0.0)
    judged = JudgedComparisons(*[np.full(60, 0.8)] * 3, votes, np.ones((60, 2)))
    low, high = judge_metrics.accuracy_interval(judged)
    covered += low <= truth <= high
  assert covered >= stats.binom(400, 0.95).ppf(1e-4)  # exact intervals cover at least this often


def test_calibration_error_detects_overconfidence():
  random = np.random.default_rng(1)
  logits = random.normal(size=20_000)
  votes = (random.random(20_000) < special.expit(logits)).astype(float)
  lengths = random.integers(1, 9, (20_000, 2))
  true, overconfident = (
    JudgedComparisons(*[special.expit(by * logits)] * 3, votes, lengths) for by in (1, 3)
  )
  assert judge_metrics.calibration_error(true) < 0.01
  assert judge_metrics.calibration_error(overconfident) > 0.1
  assert judge_metrics.accuracy(overconfident.probability, votes) == judge_metrics.accuracy(
    true.probability, votes
  )
  assert judge_metrics.log_loss(overconfident.probability, votes) > judge_metrics.log_loss(
    true.probability, votes
  )
  for bin_ in judge_metrics.calibration(true):
    assert abs(bin_.probability - bin_.votes) < 5 * (0.25 / bin_.count) ** 0.5
  assert judge_metrics.preference_for_longer(true.probability, lengths) == pytest.approx(
    0.5, abs=0.01
  )


def test_swapping_sides_changes_no_metric():
  judged = by_hand()
  orders = (1 - judged.right_first, 1 - judged.left_first, 1 - judged.probability)
  other = JudgedComparisons(*orders, 1 - judged.votes, judged.lengths[:, ::-1])
  one, two = judge_metrics.summarise(judged), judge_metrics.summarise(other)
  assert one.pop('calibration') == [pytest.approx(bin_) for bin_ in two.pop('calibration')]
  for name in one:
    assert one[name] == pytest.approx(two[name]), name


def test_missing_verdicts_are_counted_and_left_out():
  judged = by_hand()
  nothing = np.array([np.nan])
  more = JudgedComparisons(*[nothing] * 3, np.array([1.0]), np.array([[3, 2]]))
  both = JudgedComparisons(*(np.concatenate(pair) for pair in zip(judged, more, strict=True)))
  assert judge_metrics.summarise(both) == judge_metrics.summarise(judged) | {'unusable': 1}


def test_log_loss_of_zero_probability_is_finite():
  loss = judge_metrics.log_loss(np.array([0.0]), np.array([1.0]))
  assert loss == pytest.approx(-np.log(judge_metrics.MIN_PROBABILITY))
  assert judge_metrics.preference_for_longer(np.array([0.9]), np.array([[3, 3]])) == 0.5


def test_cycles_are_measured():
  cycle = np.array([[0, 0.3, -0.3], [-0.3, 0, 0.3], [0.3, -0.3, 0]])
  scores = np.array([0.2, 0.0, -0.1])
  order = scores[:, None] - scores
  found = transitivity.summarise(np.stack([cycle, order]))
  assert found == {
    'prompts': 2,
    'responses': 3,
    'three_cycles': 0.5,
    'cyclic_energy': pytest.approx(0.5),
    'condorcet': 0.5,
  }
