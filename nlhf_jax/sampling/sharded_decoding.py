"""Decoding on a mesh: each shard of prompts has a loop, and ever smaller batches, of its own.

Under `jax.shard_map` over the axis `data`, a shard runs until its own responses are done, and
halves its batch whenever half of the prompts in it are. Where every device has all weights, nothing
is communicated and no shard waits for another. Where the loop communicates over other axes, all
shards take as many steps as the slowest: a permutation, even within shards, is one operation of all
devices on some backends, which would wait for shards that have left the loop.

All sizes are loops of one program.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from nlhf_jax.models import sharding
from nlhf_jax.sampling.decode import is_full, next_tokens
from nlhf_jax.sampling.mixture_decoding import DecodePlan, group_params, make_plan
from nlhf_jax.sampling.sampler import Sampler, SamplingState, append_tokens
from nlhf_jax.structs import Params

SHARD = 'data'  # the axis of the mesh whose parts do not wait for one another
LEAST = 2  # prompts in the smallest batch of a shard; a batch of one is hardly faster


@partial(jax.jit, static_argnames=('sampler', 'limit'), donate_argnames='state')
def decode_shards(
  sampler: Sampler,
  params: Mapping[str, Params],
  state: SamplingState,
  key: Array,
  *,
  limit: int,
) -> tuple[SamplingState, Int[Array, '']]:
  """Samples tokens on every shard until its responses are done or its caches are full.

  Args:
    sampler: the static settings.
    params: slot -> parameters.
    state: of all prompts, which the row axes of the mesh divide; donated.
    key: of the whole rollout.
    limit: response length up to which the caches have room; beyond the last one they are not kept.

  Returns:
    The state, whose `step` is that of each prompt, and the number of unfinished prompts.
  """
  shards, parts, tensor = (sharding.axis_sizes()[axis] for axis in sharding.AXES)
  sizes = batch_sizes(sampler, len(state.prompts), shards, parts)
  plan, rows = make_plan(sampler, 'base' in params), PartitionSpec(SHARD)

  @partial(
    jax.shard_map,
    in_specs=(PartitionSpec(), rows, PartitionSpec()),
    out_specs=rows,
    axis_names={SHARD},
    check_vma=False,
  )
  def run(params, state, key):
    locate = lambda prompts: (jnp.broadcast_to(key, prompts.shape), prompts)
    step = make_step(sampler, plan, params, locate)

    def proceed(until, state):
      running, full = unfinished(state, parts) > until, is_full(sampler, plan, state, limit)
      if parts * tensor > 1:
        running, full = (lax.pmax(x, SHARD) for x in (running, full))
      return running & ~full

    return shrink(step, proceed, state, sizes, parts, limit < sampler.length)

  state = run(params, state._replace(step=jnp.broadcast_to(state.step, state.prompts.shape)), key)
  return state, sharding.shard_axes(jnp.sum(~jnp.all(state.done, axis=1)))


def make_step(
  sampler: Sampler,
  plan: DecodePlan,
  params: Mapping[str, Params],
  locate: Callable[[Array], tuple[Array, Array]],
) -> Callable[[SamplingState], SamplingState]:
  """A function that samples the next tokens of every row.

  Args:
    sampler: the static settings.
    plan: its groups.
    params: slot -> parameters.
    locate: numbers of prompts [b] -> the key of each, and its number among prompts of that key.
  """
  own = group_params(sampler, plan, params)

  def step(state):
    shape = (sampler.rows, plan.randoms)
    uniform = uniform_numbers(*locate(state.prompts), state.step, shape)
    sampled, count, caches = next_tokens(sampler, plan, own, state, uniform)
    return append_tokens(sampler, state, sampled, count)._replace(caches=caches)

  return step


def batch_sizes(sampler: Sampler, count: int, shards: int, parts: int) -> tuple[int, ...]:
  """Prompts in the batches of a part of a shard, from all that it has to the fewest."""
  sizes, least = [count // (shards * parts)], max(sampler.min_batch // (shards * parts), LEAST)
  # Short responses end before another loop is worth its compilation.
  while sampler.length > sampler.first_room and sizes[-1] // 2 >= least:
    sizes.append(sizes[-1] // 2)
  return tuple(sizes)


def uniform_numbers(
  keys: Array, prompts: Int[Array, 'b'], steps: Int[Array, 'b'], shape: tuple[int, int]
) -> Float[Array, 'b R n']:
  """Numbers in [0, 1) of each prompt: `uniform(fold_in(key, step), (B, *shape))[prompt]`.

  They are computed by their index, which is the counter of Threefry, the default generator of JAX.
  So they depend on no batch, and prompts may be at different steps.
  """
  rows, randoms = shape
  offsets = jnp.arange(rows * randoms).reshape(shape)

  def words(key, prompt, step):
    at = prompt * rows * randoms + offsets
    fold = partial(jax.random.fold_in, jax.random.fold_in(key, step))
    return jax.random.key_data(jax.vmap(jax.vmap(fold))(at))

  drawn = jax.vmap(words)(keys, prompts, steps)
  # The exponent and sign take 9 bits of a float.
  return ((drawn[..., 0] ^ drawn[..., 1]) >> 9).astype(jnp.float32) * jnp.float32(2**-23)


def unfinished(state: SamplingState, parts: int) -> Int[Array, '']:
  """Unfinished prompts in that part of the state that has the most."""
  running = ~jnp.all(state.done, axis=1)
  return jnp.max(jnp.sum(running.reshape(parts, -1), axis=1))


def shrink(
  step: Callable[[SamplingState], SamplingState],
  proceed: Callable[[int, SamplingState], Array],
  state: SamplingState,
  sizes: Sequence[int],
  parts: int,
  keep_caches: bool,
) -> SamplingState:
  """Takes steps while `proceed(fewest unfinished prompts, state)`, in ever smaller batches.

  Batches of a part have its own prompts only, so that none moves to another device.
  """
  size, *smaller = sizes
  state = lax.while_loop(partial(proceed, smaller[0] if smaller else 0), step, state)
  if not smaller:
    return state
  done = jnp.all(state.done, axis=1).reshape(parts, size)
  chosen = jnp.argsort(done, axis=1, stable=True)[:, : smaller[0]]
  inner = take_prompts(state, chosen, size)
  inner = shrink(step, proceed, inner, smaller, parts, keep_caches)
  if keep_caches:
    return put_prompts(state, chosen, inner, size)
  merged = put_prompts(state._replace(caches=()), chosen, inner._replace(caches=()), size)
  return merged._replace(caches=state.caches)


def take_prompts(tree: Any, chosen: Int[Array, 'parts n'], size: int) -> Any:
  """The rows of the chosen prompts of each part, of `size` that each has."""

  def take(leaf):
    return _join_parts(jax.vmap(lambda x, at: x[at])(_split_parts(leaf, chosen, size), chosen))

  return jax.tree.map(take, tree)


def put_prompts(tree: Any, chosen: Int[Array, 'parts n'], new: Any, size: int) -> Any:
  """The tree with the rows of `new` at the chosen prompts of each part."""

  def put(leaf, new):
    new = _split_parts(new, chosen, chosen.shape[1])
    leaf = _split_parts(leaf, chosen, size)
    return _join_parts(jax.vmap(lambda x, at, rows: x.at[at].set(rows))(leaf, chosen, new))

  return jax.tree.map(put, tree, new)


def _split_parts(leaf: Array, chosen: Array, size: int) -> Array:
  """[parts x size x n, ...] -> [parts, size, n, ...], n rows for each prompt."""
  return leaf.reshape(len(chosen), size, -1, *leaf.shape[1:])


def _join_parts(leaf: Array) -> Array:
  """[parts, size, n, ...] -> [parts x size x n, ...]."""
  return leaf.reshape(-1, *leaf.shape[3:])
