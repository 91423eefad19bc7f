"""Decoding on a mesh: each shard of prompts has a loop, and ever smaller batches, of its own.

Under `jax.shard_map` over the axis `data`, a shard runs until its own responses are done, and
halves its batch whenever half of the prompts in it are. Where every device has all weights, nothing
is communicated and no shard waits for another. Where the loop communicates over another axis,
XLA may compile that communication to one operation that all devices of the mesh must reach. All
shards then take as many steps as the slowest, so that none has left the loop while another waits.

All sizes are loops of one program. In the layout `gathered`, which splits the rows of a shard over
devices that share weights, the loop is that of `decode`, and batches do not shrink.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from nlhf_jax.models import sharding
from nlhf_jax.sampling.decode import is_full, next_tokens, unfinished
from nlhf_jax.sampling.mixture_decoding import DecodePlan, group_params, make_plan
from nlhf_jax.sampling.sampler import Sampler, SamplingState, append_tokens, map_prompts
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
  axes = sharding.axis_sizes()
  sizes = batch_sizes(sampler, len(state.prompts), axes[SHARD])
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
      running, full = unfinished(state) > until, is_full(sampler, plan, state, limit)
      if axes['tensor'] > 1:
        running, full = (lax.pmax(x, SHARD) for x in (running, full))
      return running & ~full

    return shrink(step, proceed, state, sizes, limit < sampler.length)

  state = run(params, state._replace(step=jnp.broadcast_to(state.step, state.prompts.shape)), key)
  return state, sharding.shard_axes(unfinished(state))


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


def shrinks() -> bool:
  """Whether the current mesh has shards whose rows lie on one device, or on all of the shard."""
  return sharding.has_mesh() and sharding.axis_sizes()['fsdp'] == 1


def batch_sizes(sampler: Sampler, count: int, shards: int) -> tuple[int, ...]:
  """Prompts in the batches of a shard, from all that it has to the fewest."""
  sizes, least = [count // shards], max(sampler.min_batch // shards, LEAST)
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


def shrink(
  step: Callable[[SamplingState], SamplingState],
  proceed: Callable[[int, SamplingState], Array],
  state: SamplingState,
  sizes: Sequence[int],
  keep_caches: bool,
) -> SamplingState:
  """Takes steps while `proceed(fewest unfinished prompts, state)`, in ever smaller batches."""
  size, *smaller = sizes
  state = lax.while_loop(partial(proceed, smaller[0] if smaller else 0), step, state)
  if not smaller:
    return state
  chosen = jnp.argsort(jnp.all(state.done, axis=1), stable=True)[: smaller[0]]
  taken = map_prompts(state, size, lambda leaf: leaf[chosen])
  inner = shrink(step, proceed, taken, smaller, keep_caches)
  if keep_caches:
    return put_prompts(state, chosen, inner)
  merged = put_prompts(state._replace(caches=()), chosen, inner._replace(caches=()))
  return merged._replace(caches=state.caches)


def put_prompts(state: SamplingState, chosen: Int[Array, 'n'], new: SamplingState) -> SamplingState:
  """The state with the rows of `new` at the chosen prompts."""

  def put(leaf, own):
    by_prompt = leaf.reshape(len(state.prompts), -1, *leaf.shape[1:])
    own = own.reshape(len(chosen), -1, *own.shape[1:])
    return by_prompt.at[chosen].set(own).reshape(leaf.shape)

  return jax.tree.map(put, state, new)
