"""Win rates at equal length: what a judge would say if both responses were as long.

The method of length-controlled AlpacaEval (arXiv 2404.04475) for any judge and any prompts: a
logistic fit of the preference on the difference of lengths, evaluated where it is zero. The paper's
term for how hard an instruction is needs other models' results, and is left out.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit

NEWTON_STEPS = 8
RESAMPLES = 500
RIDGE = 1.0  # an observation's worth, so that a judge who is always sure has finite coefficients


def win_rate(
  preference: Float[np.ndarray, 'n'], left: Int[np.ndarray, 'n'], right: Int[np.ndarray, 'n']
) -> dict[str, float]:
  """P(left beats right) at equal length, and its 95 % bootstrap interval over prompts.

  Args:
    preference: P(left beats right) on each prompt.
    left: lengths of the left responses, in any unit.
    right: lengths of the right responses.

  Returns:
    `win_rate`, `low` and `high`.
  """
  difference = (left - right).astype(float)
  spread = difference.std()
  scaled = np.tanh(difference / spread) if spread else np.zeros(len(difference))
  features = np.stack([np.ones(len(scaled)), scaled], axis=1)
  random = np.random.default_rng(0)
  counts = random.multinomial(len(scaled), np.full(len(scaled), 1 / len(scaled)), RESAMPLES)
  whole, *resampled = expit(_fit(features, preference, np.vstack([np.ones(len(scaled)), counts])))
  low, high = np.quantile(resampled, (0.025, 0.975))
  return {'win_rate': float(whole), 'low': float(low), 'high': float(high)}


def _fit(
  features: Float[np.ndarray, 'n 2'],
  preference: Float[np.ndarray, 'n'],
  counts: Float[np.ndarray, 'R n'],
) -> Float[np.ndarray, 'R']:
  """The intercept of the logistic fit of each of R weightings of the prompts."""
  products = np.stack([features[:, i] * features[:, j] for i in (0, 1) for j in (0, 1)], axis=1)
  weights = np.zeros((len(counts), 2))
  for _ in range(NEWTON_STEPS):
    chance = expit(weights @ features.T)
    slope = (counts * (chance - preference)) @ features + RIDGE * weights
    curvature = ((counts * chance * (1 - chance)) @ products).reshape(-1, 2, 2)
    weights -= np.linalg.solve(curvature + RIDGE * np.eye(2), slope[:, :, None])[:, :, 0]
  return weights[:, 0]
