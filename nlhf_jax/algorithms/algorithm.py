"""The record that an algorithm is."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxtyping import Array

from nlhf_jax.algorithms.references import ReferenceRule
from nlhf_jax.structs import Mixture, Scores

# (slot -> scores, payoff [B, K, J] or None) -> one value an example, to be minimised in the mean.
Loss = Callable[[Mapping[str, Scores], Array | None], Array]


class Algorithm(NamedTuple):
  """Who plays whom, what is minimised, and how the references move.

  The slot `policy` is the one that gradients reach; `references` names every other slot and its
  rule. `left` and `right` are the mixtures that responses are sampled from; None means that they
  come with the data, payoff included.
  """

  left: Mixture | None
  right: Mixture | None
  loss: Loss
  references: Mapping[str, ReferenceRule]


def mixture(**weights: float) -> Mixture:
  """Slot -> weight, leaving out slots of weight zero, so that a pure mixture reads one network."""
  return {slot: weight for slot, weight in weights.items() if weight}
