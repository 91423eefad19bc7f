"""A judge that is a Python function of texts."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from nlhf_jax.errors import UserError

Texts = Sequence[str]
LARGEST = float(np.finfo(np.float32).max) / 2  # of a reward: the difference of two is finite


def check_values(
  name: str, returned: Any, count: int, place: Callable[[int], str], rewards: bool = False
) -> np.ndarray:
  """What a user's function returned, as `count` numbers, [n]; NaN and None stay NaN.

  Args:
    name: of the function.
    returned: by the function.
    count: numbers that it had to return.
    place: what the number of a row belongs to, for messages.
    rewards: whether the numbers are rewards instead of probabilities.

  Raises:
    UserError: if they are not `count` numbers, or one is out of range.
  """
  try:
    raw = np.asarray(returned)
    values = np.asarray(returned, float) if raw.dtype.kind in 'biufO' else None
  except (TypeError, ValueError, RuntimeError):  # the last: a tensor of torch with a gradient
    values = None
  if values is None:
    raise UserError(f"the judge '{name}' must return {count} numbers, not {returned!r:.80}.")
  if values.shape != (count,):
    what, of = ('reward', 'responses') if rewards else ('probability', 'pairs')
    raise UserError(
      f"the judge '{name}' must return one {what} for each of {count} {of}, not an array of shape "
      f'{values.shape}.'
    )
  wrong = np.flatnonzero(abs(values) > LARGEST if rewards else (values < 0) | (values > 1))
  if len(wrong):
    allowed = (
      'a reward must be finite in float32' if rewards else 'P(left > right) must be in [0, 1]'
    )
    raise UserError(
      f"the judge '{name}' returned {values[wrong[0]]:g} for {place(int(wrong[0]))}; {allowed}."
    )
  return values


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
    chances = check_values(self.name, returned, len(prompts), lambda row: f'pair {row}')
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
