"""Filters and frequencies as they should be."""

import numpy as np
from scipy.special import log_softmax

from nlhf_jax.sampling import token

ROWS = 20_000
FILTERS = {
  'unfiltered': token.UNFILTERED,
  'temperature': token.Filters(temperature=0.7),
  'top_k': token.Filters(top_k=2),
  'top_p': token.Filters(top_p=0.6),
  'all': token.Filters(temperature=1.5, top_k=4, top_p=0.8),
}


def filter_row(logits, filters):
  """The expected `token.filter_logits` of one row without ties."""
  p = np.exp(log_softmax(logits / filters.temperature))
  order = np.argsort(-p)
  keep = order[: filters.top_k or None]
  p = p / p[keep].sum()
  reached = np.cumsum(p[keep]) >= filters.top_p
  if reached.any():
    keep = keep[: np.argmax(reached) + 1]
  out = np.full(len(p), -np.inf)
  out[keep] = np.log(p[keep] / p[keep].sum())
  return out


def assert_frequencies(counts, chances):
  """Frequencies are within five standard errors; impossible events never occur."""
  chances = np.asarray(chances)
  error = np.sqrt(chances * (1 - chances) / counts.sum())
  assert np.all(abs(counts / counts.sum() - chances) <= 5 * error)
