"""The record that an algorithm is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from jaxtyping import Array

from nlhf_jax.algorithms.references import ReferenceRule
from nlhf_jax.algorithms.selection import Select, unchanged
from nlhf_jax.errors import UserError
from nlhf_jax.structs import Comparison, Mixture, Scores

# (slot -> scores, comparison) -> one value per example, of which the mean is minimised.
Loss = Callable[[Mapping[str, Scores], Comparison], Array]

# Number of the update, from 1 -> whether the policy takes the step that the optimiser proposes.
StepRule = Callable[[Array | int], Array | bool]

# Where the responses of a side come from: one from each mixture; or `DATA`; or `LEFT`.
Side = Sequence[Mixture] | str
DATA = 'data'
LEFT = 'left'  # the left responses, compared all with all

# What a judge returns, and an algorithm can learn from: a `probability` is P(y > y'|x) - 1/2, for
# which a sampled vote may stand; `log_odds` are computed from a probability, and infinite for a
# vote; a `reward` is a difference r(y) - r(y').
Payoff = Literal['probability', 'log_odds', 'reward']

# Why algorithms lose their fixed point where a user replies at random. The payoff of a conversation
# has a part that is the luck of the user; it cancels in the mean over the policy's own samples, but
# only there, and only in what is linear in the payoff.
SELECTS_LUCK = 'it chooses among conversations by payoff, and so by the luck of the user'
BENDS_LUCK = 'its loss is not linear in the payoff, which the luck of the user spreads'
FITS_LUCK = 'it fits samples that are not of the policy itself, and so the luck of the user in them'


def always(update: Array | int) -> bool:
  """The policy takes every step."""
  del update
  return True


def extragradient(update: Array | int) -> Array | bool:
  """The policy takes every second step; the others only move the slot that looks ahead."""
  return update % 2 == 0


class Algorithm(NamedTuple):
  """Who plays whom, what is minimised, and how the references move.

  Gradients reach the slot `policy` only; `references` has the rule of every other slot. `left` and
  `right` say where responses come from. A judge compares responses that are sampled on both sides;
  comparisons from data bring their payoff, and demonstrations (left) win against samples (right).
  Without a right side there is no payoff. `select` chooses what the loss sees. `payoffs` are the
  kinds of payoff that the algorithm can learn from. `per_example` is False if the loss of an
  example depends on the rest of the batch, so that the batch cannot be split to save memory.
  `unpaired` algorithms learn from single responses that are good or bad, and from comparisons as
  pairs of them. Only `truncated` algorithms may learn from samples of top-k and top-p: what these
  leave out is never sampled, so that the fixed point depends on the start. `against_users` tells
  why the fixed point is lost in conversations with a user who replies at random; it is empty where
  it is not.
  """

  left: Side
  right: Side | None
  loss: Loss
  references: Mapping[str, ReferenceRule]
  select: Select = unchanged
  step: StepRule = always
  payoffs: tuple[Payoff, ...] = ('probability',)
  per_example: bool = True
  unpaired: bool = False
  truncated: bool = False
  against_users: str = ''


def mixture(**weights: float) -> Mixture:
  """Slot -> weight, without slots of weight zero, so that a pure mixture evaluates one network.

  Raises:
    UserError: if a weight is negative.
  """
  for slot, weight in weights.items():
    if weight < 0:
      raise UserError(
        f"the slot '{slot}' would get the weight {weight:g}, which must not be negative: weights "
        'of mixtures lie in [0, 1], and eta is at least tau where both set a weight.'
      )
  return {slot: weight for slot, weight in weights.items() if weight}


# Mixtures of one slot.
POLICY, REFERENCE, SNAPSHOT = (
  mixture(**{slot: 1.0}) for slot in ('policy', 'reference', 'snapshot')
)


def samples_responses(algorithm: Algorithm) -> bool:
  """Whether responses of one side, or of both, are sampled."""
  return algorithm.right not in (None, DATA)


def sampled_mixtures(algorithm: Algorithm) -> list[Mixture]:
  """The mixtures that responses are sampled from, of both sides."""
  left = [] if algorithm.left == DATA else algorithm.left
  right = [] if algorithm.right in (None, DATA, LEFT) else algorithm.right
  return [*left, *right]


def needs_judge(algorithm: Algorithm) -> bool:
  """Whether responses of both sides are sampled, so that a judge has to compare them."""
  return algorithm.left != DATA and algorithm.right not in (None, DATA)


def check_conversations(algorithm: Algorithm, name: str = 'this algorithm') -> None:
  """Refuses algorithms that are biased in conversations with a user who replies at random.

  Raises:
    UserError: with the reason.
  """
  reason = algorithm.against_users
  if DATA in (algorithm.left, algorithm.right):
    reason = FITS_LUCK
  if reason:
    raise UserError(
      f'{name} does not learn from conversations: {reason}; choose a policy gradient such as '
      'self_play, or a fit by squares to samples of the policy such as online_ipo.'
    )


def training_data(algorithm: Algorithm) -> str:
  """The kind of data it learns from: `prompts`, `demonstrations`, `comparisons` or `unpaired`."""
  if algorithm.left != DATA:
    return 'prompts'
  if algorithm.unpaired:
    return 'unpaired'
  return 'comparisons' if algorithm.right == DATA else 'demonstrations'
