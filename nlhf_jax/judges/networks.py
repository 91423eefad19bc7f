"""Networks that judge: a decoder reads a prompt and its responses, and linear readouts score them.

A comparison is laid out as rows of tokens, `prompt response separator` or `prompt left separator
right separator`. Both readouts of a new network are zero, so that its first prediction is a tie.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax.models.decoder import Decoder
from nlhf_jax.structs import Comparison, Params, Prompts, Responses, Scores

PLAIN_SUM_TOKENS = 16  # responses of at most this length: the sum over tokens is not scaled down


class PreferenceNetwork(NamedTuple):
  """`init(decoder parameters)` returns parameters, `logit(params, comparison)` logits [B, K, J].

  A logit is that of the left response shown first; judges evaluate both orders.
  """

  init: Callable[[Params], Params]
  logit: Callable[[Params, Comparison], Float[Array, 'B K J']]


class RewardNetwork(NamedTuple):
  """`init(decoder parameters)` returns parameters, `score(params, comparison)` the `Scores`.

  They have one entry per response, its reward: [B, K, 1] and [B, J, 1].
  """

  init: Callable[[Params], Params]
  score: Callable[[Params, Comparison], Scores]


def add_readouts(backbone: Params, *shape: int) -> Params:
  """The decoder's parameters with two readouts of this shape, both zero."""
  return {'backbone': backbone, 'token': jnp.zeros(shape), 'verdict': jnp.zeros(shape)}


def read_out(
  decoder: Decoder,
  params: Params,
  tokens: Int[Array, 'N S'],
  mask: Bool[Array, 'N S'],
  side: Int[Array, 'N S'],
  response_length: int,
) -> Float[Array, 'N *out']:
  """v.h at the last token, plus the sum over tokens of side * u.h.

  If `response_length` exceeds `PLAIN_SUM_TOKENS`, the sum is scaled by their ratio: one update
  changes u as much as v, so an unscaled sum over hundreds of tokens would change the logit hundreds
  of times as much as v does.

  Args:
    decoder: computes the hidden states h.
    params: of the network.
    tokens: rows.
    mask: of the rows.
    side: weight of each token in the sum.
    response_length: the maximal number of tokens of a response.
  """
  hidden, _ = decoder.prefill(params['backbone'], tokens, mask)
  per_token = hidden @ params['token']
  side = side.reshape(*side.shape, *(1,) * (per_token.ndim - 2))
  scale = min(1, PLAIN_SUM_TOKENS / response_length)
  return hidden[:, -1] @ params['verdict'] + scale * jnp.sum(side * per_token, axis=1)


def response_rows(
  prompts: Prompts, responses: Responses, separator: int
) -> tuple[Int[Array, 'N S'], Bool[Array, 'N S'], Int[Array, 'N S']]:
  """Tokens, mask and side of `prompt response separator`, one row for each response."""
  count = responses.tokens.shape[1]

  def rows(of_prompt, of_response, of_separator):
    end = jnp.full((*of_response.shape[:2], 1), of_separator)
    prompt = jnp.broadcast_to(of_prompt[:, None], (len(of_prompt), count, of_prompt.shape[-1]))
    return jnp.concatenate([prompt, of_response, end], axis=-1).reshape(len(of_prompt) * count, -1)

  return (
    rows(prompts.tokens, responses.tokens, separator),
    rows(prompts.mask, responses.mask, True),
    rows(jnp.zeros_like(prompts.mask, int), 1 * responses.mask, 0),
  )


def pair_rows(
  comparison: Comparison, separator: int
) -> tuple[Int[Array, 'N S'], Bool[Array, 'N S'], Int[Array, 'N S']]:
  """Tokens, mask and side of `prompt left separator right separator`, one row for each pair."""
  prompts, left, right = comparison.prompts, comparison.left, comparison.right
  pairs = (*left.tokens.shape[:2], right.tokens.shape[1])

  def rows(of_prompt, of_left, of_right, of_separator):
    end = jnp.full((*pairs, 1), of_separator)
    parts = [
      jnp.broadcast_to(of_prompt[:, None, None], (*pairs, of_prompt.shape[-1])),
      jnp.broadcast_to(of_left[:, :, None], (*pairs, of_left.shape[-1])),
      end,
      jnp.broadcast_to(of_right[:, None], (*pairs, of_right.shape[-1])),
      end,
    ]
    return jnp.concatenate(parts, axis=-1).reshape(-1, sum(part.shape[-1] for part in parts))

  return (
    rows(prompts.tokens, left.tokens, right.tokens, separator),
    rows(prompts.mask, left.mask, right.mask, True),
    rows(jnp.zeros_like(prompts.mask, int), 1 * left.mask, -1 * right.mask, 0),
  )
