"""Win rates at equal length: a bias for length is taken out, and quality is left."""

import numpy as np
import pytest
from scipy.special import expit

from nlhf_jax.evaluation import equal_length


def lengths(count=2000, lead=40, seed=0):
  random = np.random.default_rng(seed)
  right = random.integers(20, 200, count)
  return np.maximum(right + lead + random.integers(-60, 60, count), 1), right


def test_a_judge_of_length_alone_is_indifferent_at_equal_length():
  left, right = lengths()
  difference = left - right
  preference = expit(3 * np.tanh(difference / difference.std()))
  found = equal_length.win_rate(preference, left, right)
  assert preference.mean() > 0.7
  assert found['win_rate'] == pytest.approx(0.5, abs=6e-3)


@pytest.mark.parametrize('quality', [-1.0, 0.5])
def test_quality_is_what_is_left(quality):
  left, right = lengths()
  difference = left - right
  chance = expit(quality + 2 * np.tanh(difference / difference.std()))
  votes = (np.random.default_rng(1).random(len(left)) < chance).astype(float)
  found = equal_length.win_rate(votes, left, right)
  assert found['low'] < expit(quality) < found['high']
  assert 0.01 < found['high'] - found['low'] < 0.1


def test_without_a_difference_of_lengths_it_is_nearly_the_mean():
  preference = np.array([1.0, 0.0, 1.0, 1.0] * 50)
  found = equal_length.win_rate(preference, np.full(200, 7), np.full(200, 7))
  assert found['win_rate'] == pytest.approx(0.75, abs=0.01)


def test_a_judge_that_is_always_sure_has_a_finite_answer():
  found = equal_length.win_rate(np.ones(50), *lengths(50))
  assert 0.85 < found['low'] <= found['win_rate'] <= found['high'] < 1


def test_exchanging_the_sides_gives_the_complement():
  left, right = lengths(200)
  preference = np.random.default_rng(2).random(200)
  one = equal_length.win_rate(preference, left, right)
  other = equal_length.win_rate(1 - preference, right, left)
  assert one['win_rate'] == pytest.approx(1 - other['win_rate'], abs=1e-9)
