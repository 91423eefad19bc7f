"""The decoding loop: one compiled program for each batch size and cache size.

The loop returns to the host when its caches are full, to grow them, and when at most a quarter of
its prompts have an unfinished response, to compact the batch to those. On a mesh, and inside
another compiled program, caches grow but batches are not compacted; `sharded_decoding` has a loop
for meshes.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax.models import sharding
from nlhf_jax.models.decoder import Cache, grow_cache
from nlhf_jax.sampling.mixture_decoding import (
  DecodePlan,
  group_params,
  make_plan,
  member_rows,
  split_rows,
)
from nlhf_jax.sampling.sampler import (
  GROWTH,
  Sampler,
  SamplingState,
  append_tokens,
  map_prompts,
)
from nlhf_jax.sampling.speculative import check, draft
from nlhf_jax.sampling.token import SampledToken
from nlhf_jax.structs import Params, Responses


@partial(
  jax.jit,
  static_argnames=('sampler', 'batch', 'limit', 'compact_to'),
  donate_argnames='state',
)
def decode(
  sampler: Sampler,
  params: Mapping[str, Params],
  state: SamplingState,
  key: Array,
  *,
  batch: int,
  limit: int,
  compact_to: int,
) -> tuple[SamplingState, Int[Array, ''], Bool[Array, '']]:
  """Samples tokens until all responses are done, caches are full or few prompts are unfinished.

  Args:
    sampler: the static settings.
    params: slot -> parameters.
    state: donated.
    key: of the whole rollout.
    batch: prompts in the whole batch; compaction does not change their random numbers.
    limit: response length up to which the caches have room.
    compact_to: returns once at most this many prompts are unfinished; 0 disables it.

  Returns:
    The state, the number of unfinished prompts, and whether the caches are full.
  """
  plan = make_plan(sampler, 'base' in params)
  own = group_params(sampler, plan, params)

  def step(state):
    shape = (batch, sampler.rows, plan.randoms)
    uniform = jax.random.uniform(jax.random.fold_in(key, state.step), shape)[state.prompts]
    sampled, count, caches = next_tokens(sampler, plan, own, state, uniform)
    return append_tokens(sampler, state, sampled, count)._replace(caches=caches)

  full = partial(is_full, sampler, plan, limit=limit)

  def proceed(state):
    slowest = jnp.min(jnp.where(state.done, sampler.length, state.lengths))
    # For the last few tokens, compaction saves less time than compiling a program takes.
    ending = slowest > sampler.length - sampler.first_room
    return (unfinished(state) > jnp.where(ending, 0, compact_to)) & ~full(state)

  state = lax.while_loop(proceed, step, state)
  return state, sharding.shard_axes(unfinished(state)), sharding.shard_axes(full(state))


def unfinished(state: SamplingState) -> Int[Array, '']:
  """The number of prompts with an unfinished response."""
  return jnp.sum(~jnp.all(state.done, axis=1))


def is_full(
  sampler: Sampler, plan: DecodePlan, state: SamplingState, limit: int
) -> Bool[Array, '']:
  """Whether the caches, with room up to this response length, have none for the next tokens."""
  exceeds = state.lengths + plan.draft_length > limit
  return jnp.any(~state.done & exceeds) & (limit < sampler.length)


def next_tokens(
  sampler: Sampler,
  plan: DecodePlan,
  params: list[Params],
  state: SamplingState,
  uniform: Float[Array, 'b R n'],
) -> tuple[SampledToken, Int[Array, 'b R'], tuple[Cache, ...]]:
  """Samples the next tokens of every row.

  Args:
    sampler: the static settings.
    plan: its groups.
    params: of each group.
    state: of the rows.
    uniform: numbers in [0, 1), n = `plan.randoms`.

  Returns:
    `plan.draft_length` tokens per row; how many of the first ones are valid; and the caches, which
    hold all of them but the last.
  """
  split, count = len(plan.drafting), plan.draft_length
  # The last token is not cached yet; tokens that `check` rejected are taken back here.
  cached = split_rows(sampler, state.lengths - 1)
  caches = [
    cache._replace(length=member_rows(group, cached).reshape(-1))
    for group, cache in zip(plan.groups, state.caches, strict=True)
  ]
  drafted, drafting = draft(
    sampler, plan, params[:split], caches[:split], state.last, uniform[..., :count]
  )
  if not plan.checking:
    return drafted.sampled, jnp.full(state.last.shape, count), drafting
  sampled, counts, checking = check(
    sampler, plan, params[split:], caches[split:], state.last, drafted, uniform[..., count:]
  )
  return sampled, counts, drafting + checking


def decode_and_compact(
  sampler: Sampler,
  params: Mapping[str, Params],
  state: SamplingState,
  finished: Responses | None,
  key: Array,
  limit: int,
  on_host: bool,
) -> tuple[SamplingState, Responses | None, Int[Array, '']]:
  """Decodes until all responses are done or caches are full, in ever smaller batches.

  Args:
    sampler: the static settings.
    params: slot -> parameters.
    state: of the prompts that are not compacted away.
    finished: responses of the whole batch, None before the first compaction.
    key: of the whole rollout.
    limit: response length up to which the caches have room.
    on_host: whether values can be read, as they cannot inside a compiled program.

  Returns:
    The state, the finished responses, and the number of unfinished prompts.
  """
  batch = len(state.prompts) if finished is None else len(finished.tokens)
  while True:
    size = compacted_size(sampler, len(state.prompts)) if on_host else 0
    state, unfinished, full = decode(
      sampler, params, state, key, batch=batch, limit=limit, compact_to=size
    )
    if not size or bool(full) or int(unfinished) == 0:
      return state, finished, unfinished
    finished = scatter_back(finished, state)
    state = compact(state, size)


def compacted_size(sampler: Sampler, size: int) -> int:
  """The batch size that `size` prompts are compacted to; 0 if they are not compacted."""
  smaller = size // GROWTH
  worthwhile = smaller >= sampler.min_batch and sampler.length > sampler.first_room
  return smaller if worthwhile and not sharding.has_mesh() else 0


@partial(jax.jit, static_argnames='size')
def compact(state: SamplingState, size: int) -> SamplingState:
  """The state of `size` prompts, all unfinished ones among them."""
  before = len(state.prompts)
  chosen = jnp.argsort(jnp.all(state.done, axis=1), stable=True)[:size]
  caches = map_prompts(state.caches, before, lambda leaf: leaf[chosen])
  kept = jax.tree.map(lambda leaf: leaf[chosen], state._replace(step=None, caches=None))
  return kept._replace(step=state.step, caches=caches)


def scatter_back(finished: Responses | None, state: SamplingState) -> Responses:
  """The responses of the whole batch, with those of the state at their prompts' rows."""
  return state.responses if finished is None else _scatter(finished, state)


@jax.jit
def _scatter(finished, state):
  return jax.tree.map(
    lambda whole, own: whole.at[state.prompts].set(own), finished, state.responses
  )


@partial(jax.jit, static_argnames='room')
def grow_caches(state: SamplingState, room: int) -> SamplingState:
  """The state with room for `room` tokens per row in every cache."""
  return state._replace(caches=tuple(grow_cache(cache, room) for cache in state.caches))
