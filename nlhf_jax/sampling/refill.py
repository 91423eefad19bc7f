"""Sampling responses to more prompts than are decoded at once, on a mesh.

A shard has a queue of prompts and a batch of fixed size, whose places take the next prompts as
responses end. Once the queue is empty, its batch shrinks as in `sharded_decoding`. Each prompt has
the random numbers that it has when prompts are sampled a batch after another, and so the same
response but for rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int

from nlhf_jax.models import sharding
from nlhf_jax.sampling import rollout as rollouts
from nlhf_jax.sampling.decode import unfinished
from nlhf_jax.sampling.layouts import (
  choose,
  device_memory,
  sampling_layout,
  to_training,
  used_slots,
)
from nlhf_jax.sampling.mixture_decoding import make_plan
from nlhf_jax.sampling.prefill import begin
from nlhf_jax.sampling.rollout import Rollout, split_mixtures
from nlhf_jax.sampling.sampler import Sampler, SamplingState
from nlhf_jax.sampling.sharded_decoding import (
  SHARD,
  batch_sizes,
  make_step,
  put_prompts,
  shrink,
  uniform_numbers,
)
from nlhf_jax.structs import Params, Prompts, Responses

QUEUE = 4  # batches of prompts in a queue
REFILL = 4  # a shard refills its batch once a fourth of its places are free, by one prefill


def chunk_sampler(
  rollout: Rollout, params: Mapping[str, Params], key: Array, count: int, batch: int
) -> tuple[Callable[[Prompts, int], tuple[Responses, ...]], int]:
  """How to sample responses to many prompts in chunks, for `data.batches.map_chunks`.

  Args:
    rollout: of one batch.
    params: slot -> parameters.
    key: batch number n is sampled with `fold_in(key, n)`.
    count: number of all prompts.
    batch: number of prompts that are decoded at once.

  Returns:
    (prompts of a chunk, its number) -> responses; and the number of prompts in a chunk.
  """
  size = QUEUE * batch

  def sample_queue(prompts, number):
    needed = min(size, count - number * size)
    (sampler,) = rollout.args
    return refill(sampler, params, prompts, key, (QUEUE * number, needed), batch)

  def sample_batch(prompts, number):
    return rollout(params, prompts, jax.random.fold_in(key, number))

  if count > batch and _can_refill(rollout, params):
    return sample_queue, size
  return sample_batch, batch


def _can_refill(rollout: Rollout, params: Mapping[str, Params]) -> bool:
  """Whether shards can decode without one another, as they do where each device has all weights."""
  if not sharding.has_mesh() or getattr(rollout, 'func', None) is not rollouts.rollout:
    return False
  (sampler,) = rollout.args
  return choose(sampler.decoder, used_slots(sampler, params), device_memory()) == 'replicated'


def refill(
  sampler: Sampler,
  params: Mapping[str, Params],
  prompts: Prompts,
  key: Array,
  numbers: tuple[int, int],
  batch: int,
) -> tuple[Responses, ...]:
  """Samples responses to the prompts, one `Responses` [B, count, length] per mixture.

  Args:
    sampler: the static settings.
    params: slot -> parameters.
    prompts: [B, P], of consecutive batches.
    key: batch number n is sampled with `fold_in(key, n)`.
    numbers: that of the first batch; and of prompts that responses are needed to. Responses to the
      others mean nothing.
    batch: number of prompts, and of those that the whole mesh decodes at once.
  """
  total = len(prompts.tokens)
  with sampling_layout(sampler, params, prompts, key) as (params, prompts, key):
    decoding = sampler.decoder.for_decoding(params)
    responses, _ = run_queues(
      sampler, params, decoding, prompts, key, np.array(numbers), batch=batch
    )
    responses = split_mixtures(sampler, responses)
  return to_training(responses, total)


@partial(jax.jit, static_argnames=('sampler', 'batch'))
def run_queues(
  sampler: Sampler,
  params: Mapping[str, Params],
  decoding: Mapping[str, Params],
  prompts: Prompts,
  key: Array,
  numbers: Int[Array | np.ndarray, '2'],
  *,
  batch: int,
) -> tuple[Responses, Int[Array, 'B']]:
  """Responses [B, R, T], and how many steps each prompt was in the batch of its shard for.

  Args:
    sampler: the static settings.
    params: slot -> parameters.
    decoding: the same in the layout of `Decoder.decode`.
    prompts: [B, P].
    key: of all batches.
    numbers: that of the first batch, and of prompts that responses are needed to.
    batch: number of prompts.
  """
  shards, total = sharding.axis_sizes()[SHARD], len(prompts.tokens)
  places = -(-batch // shards)
  fresh = max(places // REFILL, 1)
  length = -(-max(total, places * shards) // (shards * fresh)) * fresh  # of the queue of a shard
  sizes = batch_sizes(sampler, places * shards, shards)
  # Rows have different lengths, so that no caches would be full at the same time.
  with_all_room = sampler._replace(first_room=sampler.length)

  def run(params, decoding, prompts, key, numbers):
    first, count = numbers
    # Of all shards' prompts, each shard has those whose numbers have one remainder.
    own = jnp.arange(length) * shards + lax.axis_index(SHARD)

    def locate(at):
      keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + at // batch)
      return keys, at % batch

    def prefill_at(start):
      take = lambda leaf: lax.dynamic_slice_in_dim(leaf, start, fresh)
      at = take(own)
      uniform = uniform_numbers(*locate(at), jnp.zeros_like(at), (sampler.rows, 1))[..., 0]
      state = begin(with_all_room, params, jax.tree.map(take, prompts), uniform)
      done = state.done | (at >= count)[:, None]
      return state._replace(step=jnp.ones_like(at), prompts=at, done=done)

    step = make_step(sampler, make_plan(sampler, 'base' in params), decoding, locate)
    needed = (count - lax.axis_index(SHARD) + shards - 1) // shards
    return _run_queue(step, prefill_at, sizes, (length, shards), needed)

  rows, everywhere = PartitionSpec(SHARD), PartitionSpec()
  specs = (everywhere, everywhere, rows, everywhere, everywhere)
  run = jax.shard_map(run, in_specs=specs, out_specs=rows, axis_names={SHARD}, check_vma=False)
  queues = jax.tree.map(partial(_deal, length, shards), prompts)
  found = run(params, decoding, queues, key, numbers)
  return jax.tree.map(lambda leaf: _collect(length, shards, leaf)[:total], found)


def _deal(length: int, shards: int, leaf: Array) -> Array:
  """The queues of all shards: prompts are dealt by turns, so that all queues are equally long."""
  leaf = jnp.pad(leaf, ((0, shards * length - len(leaf)), *((0, 0),) * (leaf.ndim - 1)))
  dealt = jnp.swapaxes(leaf.reshape(length, shards, *leaf.shape[1:]), 0, 1)
  return sharding.shard_rows(dealt.reshape(leaf.shape))


def _collect(length: int, shards: int, leaf: Array) -> Array:
  """What `_deal` dealt, in its first order."""
  return jnp.swapaxes(leaf.reshape(shards, length, *leaf.shape[1:]), 0, 1).reshape(leaf.shape)


def _run_queue(
  step: Callable[[SamplingState], SamplingState],
  prefill_at: Callable[[Int[Array, '']], SamplingState],
  sizes: Sequence[int],
  queues: tuple[int, int],
  needed: Int[Array, ''],
) -> tuple[Responses, Int[Array, 'length']]:
  """Responses to the needed prompts of the queue of one shard, and the steps of each.

  Args:
    step: samples the next tokens.
    prefill_at: position in the queue -> the state of the prompts from there on, a fixed number.
    sizes: of batches, from all places to the fewest.
    queues: prompts in each, and their number; prompt n is at position `n // number` of its own.
    needed: prompts of this queue that responses are needed to; they are the first.
  """
  (length, shards), places = queues, sizes[0]
  shapes = jax.eval_shape(prefill_at, 0)
  fresh = len(shapes.prompts)

  def empty(size):
    return lambda like: jnp.zeros((size * len(like) // fresh, *like.shape[1:]), like.dtype)

  def write(found, state):
    put = lambda whole, own: whole.at[state.prompts // shards].set(own, mode='drop')
    return jax.tree.map(put, found, (state.responses, state.step))

  def refill_places(carry):
    state, start, found = carry
    state = lax.while_loop(lambda state: unfinished(state) > places - fresh, step, state)
    free = jnp.argsort(~jnp.all(state.done, axis=1), stable=True)[:fresh]
    found = write(found, state)
    return put_prompts(state, free, prefill_at(start)), start + fresh, found

  state = jax.tree.map(empty(places), shapes)
  nowhere = jnp.full_like(state.prompts, length * shards)  # what is written there is dropped
  state = state._replace(prompts=nowhere, done=jnp.ones_like(state.done))
  found = jax.tree.map(empty(length), (shapes.responses, shapes.step))
  carry = state, jnp.int32(0), found
  state, _, found = lax.while_loop(lambda carry: carry[1] < needed, refill_places, carry)
  proceed = lambda until, state: unfinished(state) > until
  return write(found, shrink(step, proceed, state, sizes, keep_caches=False))
