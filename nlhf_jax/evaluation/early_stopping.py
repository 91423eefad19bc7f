"""When to stop asking: intervals of a mean that hold at every moment, however often one looks.

A gambler bets on whether win probabilities are above their mean: with the next value x, capital is
multiplied by 1 + lambda (x - mean), lambda being chosen before x is seen. If the mean is right, the
capital is a martingale, and the chance that it ever reaches 1 / level is at most level (Ville).
Half of the capital bets on more and half on less; a mean on which it did reach that is out. Bets
and bounds are those of Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
betting" (arXiv 2010.09686, section 4).

The rule: pairs share the level evenly, and a tournament is settled once 1/2 is out for each pair.
Then the order of every pair is right, but for a chance of at most the level that any is wrong. It
takes prompts in random order, as draws of all those that one cares for.
"""

import numpy as np

MAX_STAKE = 0.5  # of the capital, that is at stake at most
GRID = np.linspace(0, 1, 501)


def log_capital(values: np.ndarray, mean: float | np.ndarray, level: float) -> np.ndarray:
  """Of both bets together, after each value, if `mean` is the mean: [n, ...], as `values`.

  Args:
    values: in [0, 1], in the order in which they came.
    mean: in (0, 1), of a shape that fits `values`.
    level: that bets are made for; any of them is fair.
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
  """Whether 1/2 is out for each mean of the values, [n, ...], however often one looks."""
  return np.any(log_capital(values, 0.5, level) >= np.log(1 / level), axis=0)


def confidence_interval(values: np.ndarray, level: float) -> tuple[float, float]:
  """What the mean of n values may be; for all n together it is missed with a chance of `level`.

  The grid is 1/500 wide, and the interval that much wider on either side.
  """
  inner = GRID[1:-1]
  capital = log_capital(np.repeat(values[:, None], len(inner), axis=1), inner, level)
  kept = inner[np.all(capital < np.log(1 / level), axis=0)]
  if not len(kept):  # all of them are out: the mean lies where no grid point does
    kept = GRID[[np.argmin(abs(GRID - np.mean(values)))]]
  step = GRID[1]
  return max(float(kept[0] - step), 0.0), min(float(kept[-1] + step), 1.0)


def decided_pairs(tables: np.ndarray, level: float) -> np.ndarray:
  """Which pairs of a tournament are settled, where all of them share the level: [judges, M, M].

  Args:
    tables: P(row beats column) on each prompt by each judge, [n, judges, M, M].
    level: chance that any pair is settled wrongly.
  """
  found = np.ones(tables.shape[1:], bool)
  i, j = np.triu_indices(tables.shape[2], 1)
  found[:, i, j] = found[:, j, i] = excludes_even(tables[:, :, i, j], level / _tests(tables))
  return found


def pair_intervals(tables: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
  """Both ends of intervals that hold for all pairs together, [judges, M, M]; see `known`."""
  low, high = np.full(tables.shape[1:], 0.5), np.full(tables.shape[1:], 0.5)
  for judge in range(tables.shape[1]):
    for i, j in zip(*np.triu_indices(tables.shape[2], 1), strict=True):
      ends = confidence_interval(tables[:, judge, i, j], level / _tests(tables))
      low[judge, i, j], high[judge, i, j] = ends
      low[judge, j, i], high[judge, j, i] = 1 - ends[1], 1 - ends[0]
  return low, high


def _tests(tables) -> int:
  _, judges, policies, _ = tables.shape
  return max(judges * policies * (policies - 1) // 2, 1)
