"""Sampling one token per row: filters on the logits, then inversion of the cumulative sum."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nlhf_jax.ranges import Count, Positive, PositiveFraction

BLOCK = 64  # tokens whose probabilities are summed together


class Filters(NamedTuple):
  """Temperature, top-k and top-p, applied in this order to next-token logits after mixing.

  `top_k` keeps the k most likely tokens (0 keeps all), `top_p` the smallest set of tokens with at
  least that probability. Training scores at the temperature that it samples at; top-k and top-p
  change the fixed points of algorithms that learn from samples, and are refused there.
  """

  temperature: Positive = 1.0
  top_k: Count = 0
  top_p: PositiveFraction = 1.0


UNFILTERED = Filters()


def filter_logits(logits: Float[Array, '... V'], filters: Filters) -> Float[Array, '... V']:
  """Log-probabilities after temperature, top-k and top-p; -inf for removed tokens."""
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
  """A token, its log-probability, and the entropy of its distribution, in nats."""

  token: Int[Array, '...']
  log_prob: Float[Array, '...']
  entropy: Float[Array, '...']


def sample_token(
  uniform: Float[Array, '...'], logits: Float[Array, '... V'], filters: Filters = UNFILTERED
) -> SampledToken:
  """Samples one token per row by inverting the cumulative sum at a uniform number in [0, 1).

  Probabilities are summed in blocks: first the block is found, then the token in it. This takes one
  random number per row, and one pass of exponentials (benchmarks/NOTES.md).
  """
  if filters != UNFILTERED:
    logits = filter_logits(logits, filters)
  top = jnp.max(logits, axis=-1, keepdims=True)
  weights = jnp.exp(logits - top)
  unused = [(0, 0)] * (weights.ndim - 1) + [(0, -weights.shape[-1] % BLOCK)]
  blocks = jnp.pad(weights, unused).reshape(*weights.shape[:-1], -1, BLOCK)
  sums = jnp.sum(blocks, axis=-1)
  total = jnp.sum(sums, axis=-1)
  block, rest = _invert_cumulative(sums, uniform * total)
  within, _ = _invert_cumulative(take_entry(blocks, block[..., None], axis=-2), rest)
  token = BLOCK * block + within
  log_total = jnp.log(total) + top[..., 0]
  expected = jnp.sum(jnp.where(weights > 0, weights * logits, 0), axis=-1) / total
  return SampledToken(token, take_entry(logits, token) - log_total, log_total - expected)


def _invert_cumulative(
  weights: Float[Array, '... n'], threshold: Float[Array, '...']
) -> tuple[Int[Array, '...'], Float[Array, '...']]:
  """The index at which the cumulative sum of weights passes the threshold, and the remainder.

  The weight at the index is above zero, however sums are rounded.
  """
  sums = jnp.cumsum(weights, axis=-1)
  threshold = jnp.minimum(threshold, sums[..., -1] * (1 - 2.0**-22))
  index = jnp.sum(sums <= threshold[..., None], axis=-1)
  positive = jnp.where(weights > 0, jnp.arange(weights.shape[-1]), -1)
  index = take_entry(lax.cummax(positive, axis=positive.ndim - 1), index)
  before = jnp.where(index > 0, take_entry(sums, jnp.maximum(index - 1, 0)), 0)
  return index, jnp.maximum(threshold - before, 0)


def take_entry(x: Array, index: Int[Array, '...'], axis: int = -1) -> Array:
  """The entry of each row at its index along `axis`, which is removed."""
  return jnp.squeeze(jnp.take_along_axis(x, index[..., None], axis=axis), axis)
