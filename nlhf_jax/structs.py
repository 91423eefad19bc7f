"""The records that the packages exchange, and the letters of array dimensions.

B prompts, K left and J right responses a prompt, P prompt length, T response length, S cache
length, V vocabulary, L layers, D width, N rows (B x K flattened), H query heads, G key heads, C
head size. Lengths are in tokens, log-probabilities in nats, payoffs in win probability minus 1/2.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

Params = Any  # a nested dict of arrays
Mixture = Mapping[str, float]  # slot -> weight


class Prompts(NamedTuple):
  """Prompts padded on the left, so that every response starts in the same column."""

  tokens: Int[Array, 'B P']
  mask: Bool[Array, 'B P']


class Responses(NamedTuple):
  """Responses padded on the right; the mask includes the end-of-sequence token.

  `log_probs` and `entropy` are those of the distribution that sampled each token (nats, zero at
  padding); responses from data have neither. A row may be a conversation with a user, without
  padding between its turns: then `turn` is the number, from 1, of the turn in which the policy
  wrote a token, and 0 at the user's tokens and at padding. None: the policy wrote all of `mask`.
  """

  tokens: Int[Array, 'B K T']
  mask: Bool[Array, 'B K T']
  log_probs: Float[Array, 'B K T'] | None = None
  entropy: Float[Array, 'B K T'] | None = None
  turn: Int[Array, 'B K T'] | None = None

  @property
  def own(self) -> Bool[Array | np.ndarray, 'B K T']:
    """Which tokens the policy wrote."""
    return self.mask if self.turn is None else self.turn > 0


class Comparison(NamedTuple):
  """Left and right responses to the same prompts, and a judge's payoff of each pair.

  `payoff` is antisymmetric, in [-1/2, 1/2] for preferences; NaN where the judge gave no verdict.
  Demonstrations have no right side.
  """

  prompts: Prompts
  left: Responses
  right: Responses | None = None
  payoff: Float[Array, 'B K J'] | None = None


class Scores(NamedTuple):
  """Per-token log-probabilities of both sides under one slot.

  In nats; zero at padding, and at tokens that a user wrote.
  """

  left: Float[Array, 'B K T']
  right: Float[Array, 'B J T'] | None = None


class TrainState(NamedTuple):
  """The state of training: one parameter tree a slot, and the optimiser's state.

  `fixed` has the slots that are not trained; they are neither copied nor saved. One of them may be
  `base`: leaves that all slots share, such as pretrained weights under adapters. `in_flight` is
  what steps hand on beside it: the comparison that an asynchronous judge is judging, the log
  weights of groups of raters by name, or the parameters and optimisers of further players by name;
  None without any. `nonfinite` is 0 until an
  update computes a number that is not finite; from then on updates change nothing
  (`training.divergence`).
  """

  step: Int[Array, '']
  params: Mapping[str, Params]
  optimizer: Any
  fixed: Mapping[str, Params]
  in_flight: Comparison | Mapping[str, Any] | None = None
  nonfinite: Int[Array, ''] | int | None = 0

  @property
  def slots(self) -> Mapping[str, Params]:
    """All slots, trained or fixed."""
    return {**self.fixed, **self.params}
