"""Intervals and tests of win rates, and the correction for many tests.

Functions of NumPy arrays whose first axis is n prompts. Their intervals hold for a number of
prompts that was fixed in advance; those of `early_stopping` hold under repeated looks at the data.

scipy.stats has the same quantities for single samples (`binomtest`, `ttest_1samp`, `bootstrap`);
the tests compare with it. These versions run over whole tables at once: `binomtest` takes one count
at a time, and `bootstrap` does not resample the prompts of all pairs jointly.
"""

import numpy as np
from scipy import special

BOOTSTRAP_SAMPLES = 1_000


def clopper_pearson(
  wins: np.ndarray | np.number, count: int, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
  """The exact (Clopper-Pearson) interval of a proportion: `wins` successes in `count` trials."""
  low = special.betaincinv(np.maximum(wins, 1), count - wins + 1, (1 - level) / 2)
  high = special.betaincinv(wins + 1, np.maximum(count - wins, 1), (1 + level) / 2)
  return np.where(wins > 0, low, 0.0), np.where(wins < count, high, 1.0)


def verdict_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The 95 % Clopper-Pearson interval of the proportion of win probabilities above 1/2.

  A value of exactly 1/2 counts as half a win; a remaining half widens the interval on both sides.
  """
  wins = np.sum(values > 0.5, axis=0) + np.sum(values == 0.5, axis=0) / 2
  low, _ = clopper_pearson(np.floor(wins), len(values))
  _, high = clopper_pearson(np.ceil(wins), len(values))
  return low, high


def bootstrap_means(values: np.ndarray, draws: int = BOOTSTRAP_SAMPLES) -> np.ndarray:
  """Means over prompts that are resampled with replacement, [draws, ...].

  All pairs of policies share the resampled prompts: the bootstrap is paired.
  """
  count = len(values)
  drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=draws)
  means = (drawn / count) @ values.reshape(count, -1)
  return means.reshape(draws, *values.shape[1:])


def p_values(values: np.ndarray) -> np.ndarray:
  """Two-sided p-values of Student's test that the mean is 1/2; 1 where all values are 1/2."""
  count = len(values)
  if count < 2:
    return np.ones(values.shape[1:])
  error = values.std(axis=0, ddof=1) / np.sqrt(count)
  far = abs(values.mean(axis=0) - 0.5)
  with np.errstate(divide='ignore', invalid='ignore'):
    return np.where(far > 0, 2 * special.stdtr(count - 1, -far / error), 1.0)


def holm(p: np.ndarray) -> np.ndarray:
  """Holm's adjusted p-values [m] of m tests.

  If all hypotheses with an adjusted p-value below a level are rejected, the probability that any of
  them is true is at most the level, however the tests depend on each other. (scipy has no Holm
  correction, and statsmodels would be a dependency for these four lines.)
  """
  order = np.argsort(p)
  raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
  corrected = np.empty_like(p)
  corrected[order] = np.minimum(raised, 1.0)
  return corrected
