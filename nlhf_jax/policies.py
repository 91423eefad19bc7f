"""A decoder read as a policy: what probability it gives to responses."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nlhf_jax.models.transformer import Decoder
from nlhf_jax.structs import Comparison, Params, Prompts, Responses, Scores


def log_probs(
  decoder: Decoder, params: Params, prompts: Prompts, responses: Responses
) -> Float[Array, 'B K T']:
  """log pi(y_t | x, y_<t) of each response token, in nats, zero at padding."""
  count, length = responses.tokens.shape[1:]

  def rows(of_prompt, of_response):
    repeated = jnp.repeat(of_prompt, count, axis=0)
    return jnp.concatenate([repeated, of_response.reshape(-1, length)], axis=1)

  tokens = rows(prompts.tokens, responses.tokens)
  hidden, _ = decoder.read(params, tokens, rows(prompts.mask, responses.mask))
  # The state at each token predicts the next one, so the head reads T places, not P + T.
  logits = decoder.logits(params, hidden[:, -length - 1 : -1])
  chosen = jnp.take_along_axis(logits, tokens[:, -length:, None], axis=-1)[..., 0]
  log_p = (chosen - jax.nn.logsumexp(logits, axis=-1)).reshape(responses.tokens.shape)
  return jnp.where(responses.mask, log_p, 0.0)


def make_score(decoder: Decoder) -> Callable[[Params, Comparison], Scores]:
  """Scores of a policy: both sides apart, so that a side no loss reads costs nothing under jit."""

  def score(params, comparison):
    left = log_probs(decoder, params, comparison.prompts, comparison.left)
    if comparison.right is None:
      return Scores(left)
    if comparison.right is comparison.left:  # responses compared with themselves are read once
      return Scores(left, left)
    return Scores(left, log_probs(decoder, params, comparison.prompts, comparison.right))

  return score
