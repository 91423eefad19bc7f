"""Log-probabilities of responses under a decoder."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nlhf_jax.models import sharding
from nlhf_jax.models.decoder import Decoder
from nlhf_jax.models.head import join_columns, pick_log_probs, sharded_log_probs, split_columns
from nlhf_jax.structs import Comparison, Params, Prompts, Responses, Scores

MAX_LOGITS = 1 << 26  # in the memory of a device at once: 256 MiB


def log_probs(
  decoder: Decoder, params: Params, prompts: Prompts, responses: Responses
) -> Float[Array, 'B K T']:
  """log pi(y_t | x, y_<t) of each token, in nats; zero where the policy did not write it."""
  count, length = responses.tokens.shape[1:]

  def rows(prompt, response):
    repeated = jnp.repeat(prompt, count, axis=0)
    return jnp.concatenate([repeated, response.reshape(-1, length)], axis=1)

  tokens = rows(prompts.tokens, responses.tokens)
  hidden, _ = decoder.prefill(params, tokens, rows(prompts.mask, responses.mask))
  # The state at each token predicts the next one, so logits are needed at T of P + T columns.
  log_p = next_token_log_probs(decoder, params, hidden[:, -length - 1 : -1], tokens[:, -length:])
  return jnp.where(responses.own, log_p.reshape(responses.tokens.shape), 0.0)


def next_token_log_probs(
  decoder: Decoder, params: Params, hidden: Float[Array, 'N T D'], tokens: Int[Array, 'N T']
) -> Float[Array, 'N T']:
  """log pi of the tokens, in nats, each from the hidden state that predicts it.

  If a device's rows have more than `MAX_LOGITS` logits, they are computed in chunks of columns, and
  recomputed in the backward pass, so that [N, T, V] is never in memory.
  """

  def chunk_log_probs(hidden, tokens):
    return pick_log_probs(decoder.logits(params, hidden), tokens)

  rows, length = tokens.shape
  vocabulary = jax.eval_shape(decoder.logits, params, hidden).shape[-1]
  shards = sharding.example_shards()
  at_once = max(MAX_LOGITS // (-(-rows // shards) * vocabulary), 1)
  if length <= at_once:
    return chunk_log_probs(hidden, tokens)
  if decoder.head and shards > 1:
    kernel = decoder.head.kernel(params)
    inputs = (sharding.pad_rows(x) for x in (hidden, tokens))
    return sharded_log_probs(decoder.head, kernel, *inputs, at_once)[:rows]
  # Inside a loop, recomputation cannot be merged with the forward pass.
  one_chunk = jax.checkpoint(lambda chunk: chunk_log_probs(*chunk), prevent_cse=False)
  chunks = split_columns(hidden, at_once), split_columns(tokens, at_once)
  return join_columns(lax.map(one_chunk, chunks), length)


def make_score(decoder: Decoder) -> Callable[[Params, Comparison], Scores]:
  """A function (params, comparison) -> the scores of both sides.

  Sides are scored separately, so that jit drops a side that no loss uses.
  """

  def score(params, comparison):
    left = log_probs(decoder, params, comparison.prompts, comparison.left)
    if comparison.right is None:
      return Scores(left)
    if comparison.right is comparison.left:  # the same responses are scored once
      return Scores(left, left)
    return Scores(left, log_probs(decoder, params, comparison.prompts, comparison.right))

  return score
