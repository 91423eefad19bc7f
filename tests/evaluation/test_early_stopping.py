"""Confidence sequences: their error rate, their power, and when tournaments stop."""

import numpy as np
import pytest

from nlhf_jax.evaluation import early_stopping

LEVEL = 0.05


@pytest.mark.parametrize(
  'draw',
  [
    lambda random, shape: random.binomial(1, 0.5, shape).astype(float),
    lambda random, shape: random.uniform(size=shape),
    lambda random, shape: random.beta(0.2, 0.2, shape),
    lambda random, shape: 0.5 + random.choice([-0.01, 0.01], size=shape),
  ],
  ids=['votes', 'probabilities', 'sure', 'nearly even'],
)
def test_even_pair_is_rarely_decided(draw):
  values = draw(np.random.default_rng(0), (600, 500))  # [prompts, tournaments]
  wrong = early_stopping.excludes_even(values, LEVEL).mean()
  assert wrong <= LEVEL
  # An interval for a fixed number of prompts, looked at after each, errs far more often.
  counts = np.arange(20, 601)[:, None]
  means = np.cumsum(values, axis=0)[19:] / counts
  naive = np.any(abs(means - 0.5) > 1.96 * values.std() / np.sqrt(counts), axis=0).mean()
  assert naive > 4 * LEVEL


def test_tournament_is_rarely_decided_wrongly():
  """All pairs of four equally good policies under two judges: no order may be decided."""
  values = np.random.default_rng(1).binomial(1, 0.5, (300, 12, 300)).astype(float)
  assert early_stopping.excludes_even(values, LEVEL / 12).any(axis=0).mean() <= LEVEL


@pytest.mark.parametrize(('rate', 'prompts'), [(0.6, 900), (0.7, 200), (0.9, 60)])
def test_differences_are_decided_with_enough_prompts(rate, prompts):
  values = np.random.default_rng(2).binomial(1, rate, (prompts, 500)).astype(float)
  assert early_stopping.excludes_even(values, LEVEL).mean() > 0.9


@pytest.mark.parametrize('rate', [0.03, 0.5, 0.8])
def test_intervals_hold_at_all_times_together(rate):
  """The mean is in the interval after each of 300 prompts, in all but few of 400 runs."""
  values = np.random.default_rng(3).binomial(1, rate, (300, 400)).astype(float)
  missed = np.any(early_stopping.log_capital(values, rate, LEVEL) >= np.log(1 / LEVEL), axis=0)
  assert missed.mean() <= LEVEL
  low, high = early_stopping.confidence_interval(values[:, 0], LEVEL)
  assert low < values[:, 0].mean() < high
  assert high - low < 0.25
  shorter = early_stopping.confidence_interval(values[:100, 0], LEVEL)
  assert shorter[0] <= low < high <= shorter[1]


def test_capital_is_a_martingale():
  """Its mean over all sequences of three votes is 1, at any mean: a martingale."""
  votes = np.array(np.meshgrid(*[[0.0, 1.0]] * 3)).reshape(3, -1)
  for mean in (0.2, 0.5, 0.7):
    chance = np.prod(np.where(votes == 1, mean, 1 - mean), axis=0)
    capital = np.exp(early_stopping.log_capital(votes, mean, LEVEL)[-1])
    assert chance @ capital == pytest.approx(1)


def test_tournament_pairs_are_decided_correctly():
  random = np.random.default_rng(4)
  chance = np.array([[0.5, 0.8, 0.8], [0.2, 0.5, 0.5], [0.2, 0.5, 0.5]])
  won = np.triu((random.random((300, 1, 3, 3)) < chance).astype(float), 1)
  tables = won + np.tril(1 - won.swapaxes(2, 3), -1) + np.eye(3) / 2
  known, (low, high) = (
    early_stopping.decided_pairs(tables, LEVEL),
    early_stopping.pair_intervals(tables, LEVEL),
  )
  assert known[0].tolist() == [[True, True, True], [True, True, False], [True, False, True]]
  np.testing.assert_allclose(low, 1 - high.swapaxes(1, 2))
  assert low[0, 0, 1] > 0.5 > low[0, 1, 2]
  assert early_stopping.decided_pairs(tables[..., :2, :2], LEVEL).all()
