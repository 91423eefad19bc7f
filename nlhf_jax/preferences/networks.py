"""Preference networks: a decoder that reads a prompt and two responses and says which is better."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from nlhf_jax.models.transformer import Decoder
from nlhf_jax.structs import Comparison, Params


class PreferenceNetwork(NamedTuple):
  """`init(decoder parameters)` gives parameters; `logit(params, comparison)` gives [B, K, J].

  The logit is that of the order shown, left first; `judges.make_payoff` asks both orders.
  """

  init: Callable[[Params], Params]
  logit: Callable[[Params, Comparison], Float[Array, 'B K J']]


def make_preference_network(decoder: Decoder, width: int, separator: int) -> PreferenceNetwork:
  """A decoder that reads `prompt left separator right separator`, every pair in a row of its own.

  The logit is v.h at the last token, plus the sum of u.h over the left response's tokens, less that
  over the right's. Both readouts start at zero: the first word on every pair is a tie.

  Args:
    decoder: the backbone; its parameters go on from those given to `init`.
    width: of the decoder's hidden states.
    separator: the token after each response.
  """

  def init(backbone):
    return {'backbone': backbone, 'token': jnp.zeros(width), 'verdict': jnp.zeros(width)}

  def logit(params, comparison):
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

    tokens = rows(prompts.tokens, left.tokens, right.tokens, separator)
    mask = rows(prompts.mask, left.mask, right.mask, True)
    side = rows(jnp.zeros_like(prompts.mask, int), 1 * left.mask, -1 * right.mask, 0)
    hidden, _ = decoder.read(params['backbone'], tokens, mask)
    logits = hidden[:, -1] @ params['verdict'] + jnp.sum(side * (hidden @ params['token']), axis=1)
    return logits.reshape(pairs)

  return PreferenceNetwork(init, logit)
