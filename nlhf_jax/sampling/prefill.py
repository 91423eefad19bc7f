"""Prefill: each slot processes the prompts once, and the first tokens are sampled."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nlhf_jax import trees
from nlhf_jax.models.decoder import Cache, PrefillCache, make_cache
from nlhf_jax.sampling.mixture_decoding import DecodeGroup, DecodePlan, make_plan
from nlhf_jax.sampling.sampler import (
  Sampler,
  SamplingState,
  append_tokens,
  cache_limits,
  map_prompts,
)
from nlhf_jax.sampling.token import sample_token
from nlhf_jax.structs import Params, Prompts, Responses


@partial(jax.jit, static_argnames='sampler')
def prefill(
  sampler: Sampler, params: Mapping[str, Params], prompts: Prompts, key: Array
) -> SamplingState:
  """The state after the prompts and the first token of every response."""
  uniform = jax.random.uniform(jax.random.fold_in(key, 0), (len(prompts.tokens), sampler.rows))
  return begin(sampler, params, prompts, uniform)


def begin(
  sampler: Sampler,
  params: Mapping[str, Params],
  prompts: Prompts,
  uniform: Float[Array, 'B R'],
) -> SamplingState:
  """`prefill` with these numbers in [0, 1) for the first tokens."""
  plan = make_plan(sampler, 'base' in params)
  logits, prefilled = _prefill_slots(sampler, plan, params, prompts)
  caches = tuple(
    _make_group_cache(sampler, group, prefilled, len(prompts.tokens)) for group in plan.groups
  )
  state = _initial_state(sampler, prompts, caches)
  mixed = [sum(weight * logits[slot] for slot, weight in members) for members in sampler.mixtures]
  mixed = jnp.repeat(jnp.stack(mixed, axis=1), sampler.count, axis=1)
  sampled = sample_token(uniform, mixed, sampler.filters)
  sampled = jax.tree.map(lambda x: x[..., None], sampled)
  return append_tokens(sampler, state, sampled, jnp.ones_like(state.lengths))


def _prefill_slots(
  sampler: Sampler, plan: DecodePlan, params: Mapping[str, Params], prompts: Prompts
) -> tuple[dict[str, Float[Array, 'B V']], dict[str, PrefillCache]]:
  """slot -> logits after the prompts; and slot -> cache, one for slots that share a pass."""
  decoder, size, logits, prefilled = sampler.decoder, len(prompts.tokens), {}, {}
  for slots in dict.fromkeys(tuple(group.slots) for group in plan.groups):
    own = trees.stack_slots(params, slots)
    tokens, mask = (jnp.repeat(leaf, len(slots), axis=0) for leaf in prompts)
    hidden, cache = decoder.prefill(own, tokens, mask)
    last = decoder.logits(own, hidden[:, -1]).reshape(size, len(slots), -1)
    for number, slot in enumerate(slots):
      logits[slot], prefilled[slot] = last[:, number], cache
  return logits, prefilled


def _make_group_cache(
  sampler: Sampler, group: DecodeGroup, prefilled: Mapping[str, PrefillCache], size: int
) -> Cache:
  """The cache of a group's rows: its slots' `size` prompts, and room for the first tokens."""
  prompts = prefilled[group.slots[0]]
  if len(group.slots) > 1:
    slots = np.array([group.slots.index(member.slot) for member in group.members])
    prompts = map_prompts(prompts, size, lambda leaf: leaf[:, slots])
  room = max(cache_limits(sampler)[0] - 1, 1)
  return make_cache(prompts, size * sampler.count * len(group.members), room)


def _initial_state(sampler: Sampler, prompts: Prompts, caches: tuple[Cache, ...]) -> SamplingState:
  """The state before the first token."""
  size = len(prompts.tokens)
  shape = (size, sampler.rows, sampler.length)
  responses = Responses(
    tokens=jnp.full(shape, sampler.stop, prompts.tokens.dtype),
    mask=jnp.zeros(shape, bool),
    log_probs=jnp.zeros(shape),
    entropy=jnp.zeros(shape),
  )
  lengths = jnp.zeros(shape[:2], jnp.int32)
  last = responses.tokens[..., 0]
  return SamplingState(
    jnp.int32(0), jnp.arange(size), lengths > 0, lengths, last, caches, responses
  )
