"""Confidence sequences: intervals of a mean that hold after every observation at once.

A gambler bets that win probabilities are above, or below, a hypothesised mean. With the next value
x, capital is multiplied by 1 + lambda (x - mean), where lambda is chosen before x is seen. If the
hypothesis is true, the capital is a martingale, and the probability that it ever reaches 1 / level
is at most level (Ville). Half of the capital bets on more and half on less; a mean is excluded once
their sum reaches that value. The bets are those of Waudby-Smith and Ramdas, "Estimating means of
bounded random variables by betting" (arXiv 2010.09686, section 4).

The rule of a tournament: all pairs share the level equally, and the tournament ends once 1/2 is
excluded for every pair. The probability that the order of any pair is then wrong is at most the
level. Prompts must be a random sample of their population, in random order.
"""

import numpy as np

MAX_STAKE = 0.5  # of the capital
GRID = np.linspace(0, 1, 501)


def log_capital(values: np.ndarray, mean: float | np.ndarray, level: float) -> np.ndarray:
  """Logarithm of the capital of both bets after each value, for a hypothesised mean: [n, ...].

  Args:
    values: [n, ...], in [0, 1], in the order of observation.
    mean: in (0, 1), of a shape that broadcasts with a row of `values`.
    level: error probability that the stakes are tuned for; the bets are fair for any.
  """
  seen = np.arange(1, len(values) + 1).reshape(-1, *(1,) * (values.ndim - 1))
  means = (0.5 + np.cumsum(values, axis=0)) / (seen + 1)
  spread = (0.25 + np.cumsum((values - means) ** 2, axis=0)) / (seen + 1)
  before = np.concatenate([np.full_like(spread[:1], 0.25), spread[:-1]])
  stake = np.sqrt(2 * np.log(2 / level) / (before * seen * np.log1p(seen)))
  more = np.log1p(np.minimum(stake, MAX_STAKE / mean) * (values - mean))
  less = np.log1p(-np.minimum(stake, MAX_STAKE / (1 - mean)) * (values - mean))
  return np.logaddexp(np.cumsum(more, axis=0), np.cumsum(less, axis=0)) - np.log(2)


def excludes_even(values: np.ndarray, level: float) -> np.ndarray:
  """Whether the mean 1/2 is excluded at any time, for each column of `values` [n, ...]."""
  return np.any(log_capital(values, 0.5, level) >= np.log(1 / level), axis=0)


def confidence_interval(values: np.ndarray, level: float) -> tuple[float, float]:
  """An interval for the mean of `values` [n].

  The probability that any of the intervals after 1 to n values misses the mean is at most `level`.
  Means are tried on a grid with a step of 1/500; the interval is one step wider on either side.
  """
  inner = GRID[1:-1]
  capital = log_capital(np.repeat(values[:, None], len(inner), axis=1), inner, level)
  kept = inner[np.all(capital < np.log(1 / level), axis=0)]
  if not len(kept):  # the mean lies between two points of the grid
    kept = GRID[[np.argmin(abs(GRID - np.mean(values)))]]
  step = GRID[1]
  return max(float(kept[0] - step), 0.0), min(float(kept[-1] + step), 1.0)


def decided_pairs(tables: np.ndarray, level: float) -> np.ndarray:
  """Whether the order of each pair of policies is decided, [judges, M, M].

  Args:
    tables: P(row beats column) on each prompt by each judge, [n, judges, M, M].
    level: probability that any pair is decided wrongly; all pairs share it.
  """
  found = np.ones(tables.shape[1:], bool)
  i, j = np.triu_indices(tables.shape[2], 1)
  found[:, i, j] = found[:, j, i] = excludes_even(tables[:, :, i, j], level / _count_tests(tables))
  return found


def pair_intervals(tables: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
  """Ends of intervals that hold for all pairs together, [judges, M, M]; see `decided_pairs`."""
  low, high = np.full(tables.shape[1:], 0.5), np.full(tables.shape[1:], 0.5)
  for judge in range(tables.shape[1]):
    for i, j in zip(*np.triu_indices(tables.shape[2], 1), strict=True):
      ends = confidence_interval(tables[:, judge, i, j], level / _count_tests(tables))
      low[judge, i, j], high[judge, i, j] = ends
      low[judge, j, i], high[judge, j, i] = 1 - ends[1], 1 - ends[0]
  return low, high


def _count_tests(tables) -> int:
  _, judges, policies, _ = tables.shape
  return max(judges * policies * (policies - 1) // 2, 1)
