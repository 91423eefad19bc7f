"""Sampling responses to prompts from mixtures of slots.

All mixtures share one loop, so that a slot processes the prompts once and decodes one batch per
token, whatever number of mixtures it takes part in.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
from jaxtyping import Array

from nlhf_jax.models.decoder import Decoder
from nlhf_jax.sampling.decode import decode_and_compact, grow_caches, scatter_back
from nlhf_jax.sampling.layouts import end_padding, is_traced, sampling_layout, to_training
from nlhf_jax.sampling.prefill import prefill
from nlhf_jax.sampling.sampler import Sampler, cache_limits, make_sampler
from nlhf_jax.sampling.sharded_decoding import decode_shards, shrinks
from nlhf_jax.sampling.token import UNFILTERED, Filters
from nlhf_jax.structs import Mixture, Params, Prompts, Responses

Rollout = Callable[[Mapping[str, Params], Prompts, Array], tuple[Responses, ...]]


def make_rollout(
  decoder: Decoder,
  mixtures: Sequence[Mixture],
  *,
  length: int,
  stop: int,
  count: int = 1,
  filters: Filters = UNFILTERED,
) -> Rollout:
  """A function that samples `count` responses per prompt from each mixture.

  Args:
    decoder: the model that every slot's parameters belong to.
    mixtures: slot -> weight, each; weights are used as given and need not sum to one.
    length: maximum number of tokens in a response, including the stop token.
    stop: the token that ends a response. It also fills the padding after it.
    count: responses per prompt, from each mixture.
    filters: temperature, top-k and top-p.

  Returns:
    (slots, prompts [B, P], key) -> one `Responses` [B, count, length] per mixture, with the
    log-probability of each token under the distribution that it was sampled from.
  """
  return partial(rollout, make_sampler(decoder, mixtures, length, stop, count, filters))


def rollout(
  sampler: Sampler, params: Mapping[str, Params], prompts: Prompts, key: Array
) -> tuple[Responses, ...]:
  """Samples responses to the prompts, one `Responses` [B, count, length] per mixture."""
  count = len(prompts.tokens)
  with sampling_layout(sampler, params, prompts, key) as (params, prompts, key):
    responses = _sample(sampler, params, prompts, key, count)
  return to_training(responses, count)


def _sample(sampler, params, prompts, key, count):
  """Responses to the prompts; those to all but the first `count` are empty."""
  on_host = not is_traced((params, prompts, key))
  state, finished = end_padding(prefill(sampler, params, prompts, key), count), None
  params = sampler.decoder.for_decoding(params)
  limits = cache_limits(sampler)
  for limit in limits:
    if limit != limits[0]:
      state = grow_caches(state, limit - 1)
    if on_host and shrinks():
      state, unfinished = decode_shards(sampler, params, state, key, limit=limit)
    else:
      state, finished, unfinished = decode_and_compact(
        sampler, params, state, finished, key, limit, on_host
      )
    if on_host and limit != sampler.length and int(unfinished) == 0:
      break
  return split_mixtures(sampler, scatter_back(finished, state))


@partial(jax.jit, static_argnames='sampler')
def split_mixtures(sampler: Sampler, responses: Responses) -> tuple[Responses, ...]:
  """Responses [B, R, T] as one `Responses` [B, count, T] per mixture."""

  def split(leaf):
    return leaf.reshape(len(leaf), len(sampler.mixtures), sampler.count, sampler.length)

  responses = jax.tree.map(split, responses)
  return tuple(
    jax.tree.map(lambda leaf, number=number: leaf[:, number], responses)
    for number in range(len(sampler.mixtures))
  )
