"""The record that an algorithm is."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Array

from nlhf_jax.algorithms.references import ReferenceRule
from nlhf_jax.algorithms.selection import Select, unchanged
from nlhf_jax.errors import UserError
from nlhf_jax.structs import Comparison, Mixture, Scores

# (slot -> scores, comparison) -> one value an example, to be minimised in the mean.
Loss = Callable[[Mapping[str, Scores], Comparison], Array]

# Number of the update, from 1 -> whether the policy takes the step that the gradient proposes.
StepRule = Callable[[Array | int], Array | bool]

# Where the responses of a side come from: one is drawn from each mixture; or `DATA`; or `LEFT`.
Side = Sequence[Mixture] | str
DATA = 'data'
LEFT = 'left'  # the left responses, each of them against all of them


def always(update: Array | int) -> bool:
  """Every proposal is taken."""
  del update
  return True


def extragradient(update: Array | int) -> Array | bool:
  """Every second proposal is taken; the others only move the references that look ahead."""
  return update % 2 == 0


class Algorithm(NamedTuple):
  """Who plays whom, what is minimised, and how the references move.

  The slot `policy` is the one that gradients reach; `references` names every other slot and its
  rule. `left` and `right` say where responses come from, with a judge's payoff between them, except
  that data bring their own payoff, and that demonstrations (left, from the data) win against what
  is sampled. Without a right side there is no payoff. `select` chooses what the loss sees.
  """

  left: Side
  right: Side | None
  loss: Loss
  references: Mapping[str, ReferenceRule]
  select: Select = unchanged
  step: StepRule = always


def mixture(**weights: float) -> Mixture:
  """Slot -> weight, leaving out slots of weight zero, so that a pure mixture reads one network.

  Raises:
    UserError: if a weight is negative.
  """
  for slot, weight in weights.items():
    if weight < 0:
      raise UserError(
        f"the slot '{slot}' would get the weight {weight:g}, which must not be negative: shares "
        'lie in [0, 1], and eta is at least tau where both set a weight.'
      )
  return {slot: weight for slot, weight in weights.items() if weight}


def needs_judge(algorithm: Algorithm) -> bool:
  """Whether responses of both sides are sampled, so that someone has to compare them."""
  return algorithm.left != DATA and algorithm.right not in (None, DATA)


def training_data(algorithm: Algorithm) -> str:
  """The kind of data: `prompts` to respond to, `demonstrations`, or `comparisons`."""
  if algorithm.left != DATA:
    return 'prompts'
  return 'comparisons' if algorithm.right == DATA else 'demonstrations'
