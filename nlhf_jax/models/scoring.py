"""Log-probabilities of responses under a decoder."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nlhf_jax.models.decoder import Decoder
from nlhf_jax.structs import Comparison, Params, Prompts, Responses, Scores

MAX_LOGITS = 1 << 26  # in memory at once: 256 MiB


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

  More than `MAX_LOGITS` logits are computed in chunks of columns, and recomputed in the backward
  pass, so that [N, T, V] is never in memory.
  """

  def chunk_log_probs(hidden, tokens):
    logits = decoder.logits(params, hidden)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)

  rows, length = tokens.shape
  vocabulary = jax.eval_shape(decoder.logits, params, hidden).shape[-1]
  at_once = max(MAX_LOGITS // (rows * vocabulary), 1)
  if length <= at_once:
    return chunk_log_probs(hidden, tokens)

  def split(x):
    padding = ((0, 0), (0, -length % at_once)) + ((0, 0),) * (x.ndim - 2)
    chunks = jnp.pad(x, padding).reshape(rows, -1, at_once, *x.shape[2:])
    return jnp.swapaxes(chunks, 0, 1)

  # Inside a loop, recomputation cannot be merged with the forward pass.
  one_chunk = jax.checkpoint(lambda chunk: chunk_log_probs(*chunk), prevent_cse=False)
  log_p = lax.map(one_chunk, (split(hidden), split(tokens)))
  return jnp.swapaxes(log_p, 0, 1).reshape(rows, -1)[:, :length]


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
