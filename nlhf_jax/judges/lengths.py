"""A judge that prefers the longer response: the baseline that every other judge must beat."""

from collections.abc import Sequence

import numpy as np

from nlhf_jax.judges.kinds import ExternalKind, judge_by_texts


def prefer_longer(prompts: Sequence[str], left: Sequence[str], right: Sequence[str]) -> np.ndarray:
  """P(left > right), [n]: 1 if the left text has more characters, 0 if fewer, 1/2 if as many."""
  del prompts
  difference = [len(one) - len(other) for one, other in zip(left, right, strict=True)]
  return 0.5 + np.sign(np.array(difference, float)) / 2


KIND = ExternalKind(
  'lengths',
  make=lambda section, folder, stop: judge_by_texts('the longer response', prefer_longer),
  settings=lambda section: 'the longer response, in characters',
)
