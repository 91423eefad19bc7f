"""Networks that judge: a decoder reads a prompt and two responses, or one, and is read out."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax.models.decoder import Decoder
from nlhf_jax.structs import Comparison, Params, Prompts, Responses, Scores

IN_FULL = 16  # tokens of the longest response up to which a sum over tokens is a plain one


class PreferenceNetwork(NamedTuple):
  """`init(decoder parameters)` gives parameters; `logit(params, comparison)` gives [B, K, J].

  The logit is that of the order shown, left first; judges ask both orders.
  """

  init: Callable[[Params], Params]
  logit: Callable[[Params, Comparison], Float[Array, 'B K J']]


class RewardNetwork(NamedTuple):
  """`init(decoder parameters)` gives parameters; `score(params, comparison)` gives `Scores` whose
  one token a response, [B, K, 1] and [B, J, 1], is its reward.
  """

  init: Callable[[Params], Params]
  score: Callable[[Params, Comparison], Scores]


def with_readouts(backbone: Params, *shape: int) -> Params:
  """A decoder's parameters with two readouts that start at zero: the first word is a tie."""
  return {'backbone': backbone, 'token': jnp.zeros(shape), 'verdict': jnp.zeros(shape)}


def read_out(
  decoder: Decoder,
  params: Params,
  tokens: Int[Array, 'N S'],
  mask: Bool[Array, 'N S'],
  side: Int[Array, 'N S'],
  longest: int,
) -> Float[Array, 'N *out']:
  """v.h at the last token, plus the sum of u.h over tokens, each times its `side`.

  Where the `longest` response may have more than `IN_FULL` tokens, each counts `IN_FULL / longest`:
  a step moves u as far as v, and a plain sum over hundreds of tokens by as much as hundreds of
  readouts.
  """
  hidden, _ = decoder.prefill(params['backbone'], tokens, mask)
  said = hidden @ params['token']
  side = side.reshape(*side.shape, *(1,) * (said.ndim - 2))
  counts = min(1, IN_FULL / longest)
  return hidden[:, -1] @ params['verdict'] + counts * jnp.sum(side * said, axis=1)


def one_a_row(
  prompts: Prompts, responses: Responses, separator: int
) -> tuple[Int[Array, 'N S'], Bool[Array, 'N S'], Int[Array, 'N S']]:
  """Tokens, mask and side of `prompt response separator`, every response in a row of its own."""
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


def make_reward_network(
  decoder: Decoder, width: int, separator: int, longest: int = IN_FULL
) -> RewardNetwork:
  """A decoder that reads `prompt response separator`: as `make_preference_network`, for one."""

  def rewards(params, prompts: Prompts, responses: Responses):
    said = read_out(decoder, params, *one_a_row(prompts, responses, separator), longest)
    return said.reshape(*responses.tokens.shape[:2], 1)

  def score(params, comparison):
    prompts, left, right, _ = comparison
    return Scores(rewards(params, prompts, left), rewards(params, prompts, right))

  return RewardNetwork(lambda backbone: with_readouts(backbone, width), jax.jit(score))


def make_embedding_network(
  decoder: Decoder, width: int, separator: int, longest: int = IN_FULL, *, planes: int, key: Array
) -> PreferenceNetwork:
  """A general preference model: K responses are judged by reading each of them once.

  Every response is a point v in `planes` planes, and the logit is the sum over planes of the area
  that two of them span, v_1 v'_2 - v_2 v'_1 (arXiv 2410.02197, section 4). It is antisymmetric as
  it is, one plane can hold a cycle, and d planes every preference over 2 d responses.

  Args:
    decoder: as of `make_preference_network`, as are the arguments after it.
    planes: how many; 1 or more.
    key: by which `init` draws where the points are at first.
  """

  def init(backbone):
    # At zero, an area has no slope.
    points = jax.random.normal(key, (width, 2 * planes)) / width**0.5
    return with_readouts(backbone, width, 2 * planes) | {'verdict': points}

  @jax.jit
  def points(params, prompts, responses):
    said = read_out(decoder, params, *one_a_row(prompts, responses, separator), longest)
    return said.reshape(*responses.tokens.shape[:2], 2, planes)

  def area(one, other):
    return jnp.einsum('bkp,bjp->bkj', one[:, :, 0], other[:, :, 1])

  def logit(params, comparison):
    prompts, left, right = comparison.prompts, comparison.left, comparison.right
    one = points(params, prompts, left)
    other = one if right is left else points(params, prompts, right)
    return area(one, other) - area(other, one).swapaxes(1, 2)

  return PreferenceNetwork(init, logit)


def make_preference_network(
  decoder: Decoder, width: int, separator: int, longest: int = IN_FULL
) -> PreferenceNetwork:
  """A decoder that reads `prompt left separator right separator`, every pair in a row of its own.

  The logit is v.h at the last token, plus the sum of u.h over the left response's tokens, less that
  over the right's. Both readouts start at zero: the first word on every pair is a tie.

  Args:
    decoder: the backbone; its parameters go on from those given to `init`.
    width: of the decoder's hidden states.
    separator: the token after each response.
    longest: the most tokens that a response may have, by which those of all are weighed.
  """

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
    return read_out(decoder, params, tokens, mask, side, longest).reshape(pairs)

  return PreferenceNetwork(lambda backbone: with_readouts(backbone, width), jax.jit(logit))
