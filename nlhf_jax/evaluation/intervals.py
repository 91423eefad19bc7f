"""How sure a win rate is: intervals of it, and what is left of many of them looked at together.

Functions of NumPy arrays whose first axis is n prompts. What may be looked at while prompts are
still coming is in `sequential`.
"""

import numpy as np
from scipy import special

BOOTSTRAP_SAMPLES = 1_000


def clopper_pearson(
  wins: np.ndarray | np.number, count: int, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
  """The exact interval of a share of which `wins` of `count` were seen; it holds for any share."""
  low = special.betaincinv(np.maximum(wins, 1), count - wins + 1, (1 - level) / 2)
  high = special.betaincinv(wins + 1, np.maximum(count - wins, 1), (1 + level) / 2)
  return np.where(wins > 0, low, 0.0), np.where(wins < count, high, 1.0)


def verdict_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Clopper and Pearson's 95 % interval of how often a win probability is above 1/2.

  Draws are half a win each; what is left of a half widens the interval on either side.
  """
  wins = np.sum(values > 0.5, axis=0) + np.sum(values == 0.5, axis=0) / 2
  low, _ = clopper_pearson(np.floor(wins), len(values))
  _, high = clopper_pearson(np.ceil(wins), len(values))
  return low, high


def bootstrap_means(values: np.ndarray, draws: int = BOOTSTRAP_SAMPLES) -> np.ndarray:
  """Means of draws of the prompts with replacement, the same prompts for every pair: [draws, ...].

  So what two policies win on the same prompts stays together: the bootstrap is a paired one.
  """
  count = len(values)
  drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=draws)
  means = (drawn / count) @ values.reshape(count, -1)
  return means.reshape(draws, *values.shape[1:])


def p_values(values: np.ndarray) -> np.ndarray:
  """Of Student's test that the mean is 1/2, on both sides; 1 where all values are 1/2."""
  count = len(values)
  if count < 2:
    return np.ones(values.shape[1:])
  error = values.std(axis=0, ddof=1) / np.sqrt(count)
  far = abs(values.mean(axis=0) - 0.5)
  with np.errstate(divide='ignore', invalid='ignore'):
    return np.where(far > 0, 2 * special.stdtr(count - 1, -far / error), 1.0)


def holm(p: np.ndarray) -> np.ndarray:
  """The p-values [m] of m tests, so that one below 0.05 is rarely wrong among all of them.

  Holm's correction: with all that fall below a level rejected, the chance that any is wrong is at
  most that level, however the tests depend on each other.
  """
  order = np.argsort(p)
  raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
  corrected = np.empty_like(p)
  corrected[order] = np.minimum(raised, 1.0)
  return corrected
