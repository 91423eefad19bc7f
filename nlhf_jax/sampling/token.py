"""Drawing tokens: what is done to logits before, one draw a row, and drafts held to a target."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nlhf_jax.ranges import Count, Positive, PositiveFraction

BLOCK = 64  # tokens whose probabilities are added up together


class Filters(NamedTuple):
  """What is done to next-token logits, after mixing, before one is drawn.

  Training samples with none of them: the policy gradient's score function is that of the policy as
  it is. `top_k` keeps the k likeliest tokens (0: all of them), `top_p` the smallest set with at
  least that mass.
  """

  temperature: Positive = 1.0
  top_k: Count = 0
  top_p: PositiveFraction = 1.0


UNFILTERED = Filters()


def filter_logits(logits: Float[Array, '... V'], filters: Filters) -> Float[Array, '... V']:
  """Log-probabilities after temperature, top-k and top-p, in that order; -inf where cut."""
  log_p = jax.nn.log_softmax(logits / filters.temperature)
  if 0 < filters.top_k < log_p.shape[-1]:
    least = lax.top_k(log_p, filters.top_k)[0][..., -1:]
    log_p = jax.nn.log_softmax(jnp.where(log_p >= least, log_p, -jnp.inf))
  if filters.top_p < 1:
    falling = -jnp.sort(-log_p)
    before = jnp.cumsum(jnp.exp(falling), axis=-1) - jnp.exp(falling)
    least = jnp.min(jnp.where(before < filters.top_p, falling, jnp.inf), axis=-1, keepdims=True)
    log_p = jax.nn.log_softmax(jnp.where(log_p >= least, log_p, -jnp.inf))
  return log_p


class SampledToken(NamedTuple):
  """A token a row, its log-probability, and the entropy of what it was drawn from, in nats."""

  token: Int[Array, '...']
  log_prob: Float[Array, '...']
  entropy: Float[Array, '...']


def sample_token(
  uniform: Float[Array, '...'], logits: Float[Array, '... V'], filters: Filters = UNFILTERED
) -> SampledToken:
  """One token a row by inverting the cumulative sum at a uniform number in [0, 1).

  Probabilities are added up in blocks: first the block is found, then the token in it.
  """
  if filters != UNFILTERED:
    logits = filter_logits(logits, filters)
  top = jnp.max(logits, axis=-1, keepdims=True)
  weights = jnp.exp(logits - top)
  unused = [(0, 0)] * (weights.ndim - 1) + [(0, -weights.shape[-1] % BLOCK)]
  blocks = jnp.pad(weights, unused).reshape(*weights.shape[:-1], -1, BLOCK)
  sums = jnp.sum(blocks, axis=-1)
  total = jnp.sum(sums, axis=-1)
  block, rest = _place(sums, uniform * total)
  within, _ = _place(take_entry(blocks, block[..., None], axis=-2), rest)
  token = BLOCK * block + within
  log_total = jnp.log(total) + top[..., 0]
  expected = jnp.sum(jnp.where(weights > 0, weights * logits, 0), axis=-1) / total
  return SampledToken(token, take_entry(logits, token) - log_total, log_total - expected)


def _place(
  weights: Float[Array, '... n'], threshold: Float[Array, '...']
) -> tuple[Int[Array, '...'], Float[Array, '...']]:
  """Whose share of the weights' sum the threshold falls in, and how far into it.

  However sums are rounded, the weight there is above zero.
  """
  sums = jnp.cumsum(weights, axis=-1)
  threshold = jnp.minimum(threshold, sums[..., -1] * (1 - 2.0**-22))
  index = jnp.sum(sums <= threshold[..., None], axis=-1)
  places = jnp.where(weights > 0, jnp.arange(weights.shape[-1]), -1)
  index = take_entry(lax.cummax(places, axis=places.ndim - 1), index)
  before = jnp.where(index > 0, take_entry(sums, jnp.maximum(index - 1, 0)), 0)
  return index, jnp.maximum(threshold - before, 0)


def accept(
  drafts: Int[Array, '... k'],
  log_draft: Float[Array, '... k V'],
  log_target: Float[Array, '... k V'],
  uniform: Float[Array, '... k+1'],
) -> tuple[SampledToken, Int[Array, '...']]:
  """Tokens of the target, of which so many count: drafts that are kept, and one that is put right.

  Both log-probabilities are of the next token after the drafts before it, so that what follows the
  first draft that is not kept means nothing (arXiv 2211.17192, theorem 1). `uniform` decides on
  each draft, and its last number draws what replaces one. None follows when all are kept, unlike
  there: who drafts has not read the last one.
  """
  length = drafts.shape[-1]
  chance = jnp.exp(jnp.minimum(take_entry(log_target, drafts) - take_entry(log_draft, drafts), 0))
  kept = jnp.sum(jnp.cumprod(uniform[..., :-1] < chance, axis=-1), axis=-1)
  wrong = jnp.minimum(kept, length - 1)
  target, draft = (
    jnp.exp(take_entry(x, wrong[..., None], axis=-2)) for x in (log_target, log_draft)
  )
  more = jnp.maximum(target - draft, 0)
  more = jnp.where(jnp.any(more > 0, axis=-1, keepdims=True), more, target)  # but for rounding
  instead = sample_token(uniform[..., -1], jnp.log(more)).token
  tokens = jnp.where(jnp.arange(length) == kept[..., None], instead[..., None], drafts)
  some = jnp.where(log_target > -jnp.inf, log_target, 0)
  entropy = -jnp.sum(jnp.exp(log_target) * some, axis=-1)
  return SampledToken(tokens, take_entry(log_target, tokens), entropy), jnp.minimum(
    kept + 1, length
  )


def take_entry(x: Array, index: Int[Array, '...'], axis: int = -1) -> Array:
  """The entry of each row that its index names, along an axis that goes."""
  return jnp.squeeze(jnp.take_along_axis(x, index[..., None], axis=axis), axis)
