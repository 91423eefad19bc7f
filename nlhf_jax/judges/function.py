"""A judge that is a Python function of texts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from nlhf_jax.errors import UserError

Texts = Sequence[str]


class FunctionJudge(NamedTuple):
  """A user's function of texts; calling it checks what the function returns.

  `function(prompts, left, right)` returns P(left > right) for each of n prompts, with the left
  response shown first.
  """

  function: Callable[[Texts, Texts, Texts], Sequence[float]]

  @property
  def name(self) -> str:
    """The name of the function."""
    return getattr(self.function, '__qualname__', repr(self.function))

  def __call__(self, prompts: Texts, left: Texts, right: Texts) -> np.ndarray:
    """P(left > right), [n]; NaN for a pair without a preference.

    Raises:
      UserError: if the function does not return n probabilities, or has no preference on any pair.
    """
    returned = self.function(prompts, left, right)
    try:
      chances = np.asarray(returned, float)
    except (TypeError, ValueError):
      raise UserError(
        f"the judge '{self.name}' must return {len(prompts)} numbers, not {returned!r:.80}."
      ) from None
    if chances.shape != (len(prompts),):
      raise UserError(
        f"the judge '{self.name}' must return one probability for each of {len(prompts)} pairs, "
        f'not an array of shape {chances.shape}.'
      )
    wrong = np.flatnonzero((chances < 0) | (chances > 1))
    if len(wrong):
      raise UserError(
        f"the judge '{self.name}' returned {chances[wrong[0]]:g} for pair {wrong[0]}; "
        'P(left > right) must be in [0, 1].'
      )
    if np.isnan(chances).all():
      raise UserError(
        f"the judge '{self.name}' returned NaN for all {len(prompts)} pairs; at least one needs a "
        'preference.'
      )
    return chances


def from_function(function: Callable[[Texts, Texts, Texts], Sequence[float]]) -> FunctionJudge:
  """A judge from a function (prompts, left, right) -> P(left is preferred to right).

  The arguments are lists of n texts each; the function returns n numbers in [0, 1], booleans
  included. NaN or None stands for no preference: the policy does not learn from that pair. In
  training the function is called with both orders of a pair, and the two answers are averaged, so
  that a bias towards the first position cancels.
  """
  return FunctionJudge(function)
