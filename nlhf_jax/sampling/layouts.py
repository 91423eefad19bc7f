"""Where weights and rows lie on a mesh while responses are sampled.

Every token that is sampled reads all weights, so weights that training splits would be gathered for
every token. Therefore each rollout moves them once, in the type that they are computed in:

- `replicated`: every device has all weights, and rows of its own; nothing is communicated.
- `tensor`: the devices that split parameters in training split heads and hidden units instead, or
  as many of them as divide the heads; the others have rows of their own.
- `gathered`: as in training. Only this takes no more memory than the parts of each device.

A layout is another mesh of the same devices, so that the table of `models.sharding` applies to it.
"""

import contextlib
import functools
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nlhf_jax import distributed, trees
from nlhf_jax.models import sharding
from nlhf_jax.models.decoder import Decoder
from nlhf_jax.sampling.sampler import Sampler, SamplingState
from nlhf_jax.structs import Params, Prompts

LAYOUTS = ('replicated', 'tensor', 'gathered')
SHARE = 0.25  # of a device's memory that the weights may take: there are two copies for a moment

_wanted: ContextVar[str] = ContextVar('sampling layout', default='auto')


@contextlib.contextmanager
def use_layout(name: str) -> Iterator[None]:
  """A context in which this layout is used; `auto` chooses the first one that fits."""
  token = _wanted.set(name)
  try:
    yield
  finally:
    _wanted.reset(token)


def choose(decoder: Decoder, slots: Mapping[str, Params], memory: int | float) -> str:
  """The layout of the context or, if it is `auto`, the first whose weights fit.

  Args:
    decoder: of the slots.
    slots: slot -> parameters or their shapes; what slots share counts once.
    memory: bytes of a device.
  """
  if _wanted.get() != 'auto':
    return _wanted.get()
  size = whole_bytes(decoder, slots)
  for layout, parts in (('replicated', 1), ('tensor', sharing_devices(decoder))):
    if distributed.broadcast_from_first(size / parts <= SHARE * memory):
      return layout
  return 'gathered'


def whole_bytes(decoder: Decoder, slots: Mapping[str, Params]) -> int:
  """Bytes of the weights of all slots in the types that they are computed in."""
  sizes = {}
  for params in slots.values():
    shapes = jax.tree.leaves(jax.eval_shape(decoder.cast, params))
    for leaf, shape in zip(jax.tree.leaves(params), shapes, strict=True):
      sizes[id(leaf)] = shape.size * shape.dtype.itemsize
  return sum(sizes.values())


def device_memory() -> int:
  """Bytes of memory of a device; simulated devices share that of the machine."""
  stats = jax.local_devices()[0].memory_stats() or {}
  host = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  return stats.get('bytes_limit', host // jax.local_device_count())


def sharing_devices(decoder: Decoder) -> int:
  """The number of devices of the current mesh that share the weights in the layout `tensor`."""
  mesh = sharding.axis_sizes()
  parts = mesh['fsdp'] * mesh['tensor']
  return math.gcd(parts, decoder.heads) if decoder.heads else parts


def sampling_mesh(layout: str, decoder: Decoder) -> jax.sharding.Mesh:
  """The devices of the current mesh, along the axes that this layout splits."""
  mesh, sharing = jax.sharding.get_mesh(), sharing_devices(decoder)
  sizes = {
    'replicated': (mesh.size, 1, 1),
    'tensor': (mesh.size // sharing, 1, sharing),
    'gathered': tuple(mesh.shape[axis] for axis in sharding.AXES),
  }[layout]
  return jax.sharding.Mesh(mesh.devices.reshape(sizes), mesh.axis_names, mesh.axis_types)


def to_sampling(
  decoder: Decoder, slots: Mapping[str, Params], mesh: jax.sharding.Mesh
) -> dict[str, Params]:
  """Slot -> its parameters on the mesh of a layout; arrays that slots share stay shared.

  The cast is a program before the move: in one program, XLA would move float32 and cast after it.
  """
  moved = {}  # id of an array -> where it is sampled from
  for params in slots.values():
    new = {path: leaf for path, leaf in trees.flatten(params).items() if id(leaf) not in moved}
    low = _lower(decoder.cast, new)
    with jax.set_mesh(mesh):
      low = sharding.put_parameters(low)
    moved |= {id(leaf): low[path] for path, leaf in new.items()}
  return {
    slot: jax.tree.map(lambda leaf: moved[id(leaf)], params) for slot, params in slots.items()
  }


@partial(jax.jit, static_argnames='cast')
def _lower(cast: Callable[[Params], Params], params: Params) -> Params:
  return sharding.shard_parameters(cast(sharding.shard_parameters(params)))


@contextlib.contextmanager
def sampling_layout(
  sampler: Sampler, slots: Mapping[str, Params], prompts: Prompts, key: Array
) -> Iterator[tuple[Mapping[str, Params], Prompts, Array]]:
  """A context to sample in; yields the slots, the prompts and the key as they lie there.

  There are as many prompts as the mesh can split, the last of which `end_padding` ends at once. On
  one device, and inside a compiled program, nothing changes.
  """
  if not _is_laid_out((slots, prompts, key)):
    yield slots, prompts, key
    return
  slots = used_slots(sampler, slots)
  layout = choose(sampler.decoder, slots, device_memory())
  announce(layout, whole_bytes(sampler.decoder, slots))
  mesh = sampling_mesh(layout, sampler.decoder)
  slots = to_sampling(sampler.decoder, slots, mesh)
  with jax.set_mesh(mesh):
    yield slots, *_place(prompts, key)


def used_slots(sampler: Sampler, slots: Mapping[str, Params]) -> dict[str, Params]:
  """The slots that are sampled from, and the base that they may share."""
  used = {'base', *(slot for members in sampler.mixtures for slot, _ in members)}
  return {slot: params for slot, params in slots.items() if slot in used}


def _is_laid_out(tree: Any) -> bool:
  """Whether arrays may lie on several devices, and can be moved from here."""
  return jax.sharding.get_abstract_mesh().size > 1 and not is_traced(tree)


def is_traced(tree: Any) -> bool:
  """Whether there are no values, inside a compiled program."""
  return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


@functools.cache  # printed once
def announce(layout: str, size: int) -> None:
  """Prints the layout beside the progress, from the first process."""
  if distributed.is_first():
    print(
      f'Responses are sampled from weights in the layout {layout} ({size / 1e9:.3g} GB whole; '
      'config.mesh.sampling forces another one).',
      file=sys.stderr,
    )


@jax.jit
def _place(prompts, key):
  rows = jax.tree.map(lambda leaf: sharding.shard_rows(sharding.pad_rows(leaf)), prompts)
  return rows, sharding.shard_axes(key)


def end_padding(state: SamplingState, count: int) -> SamplingState:
  """The state in which all prompts after the first `count` are done."""
  if count == len(state.prompts):
    return state
  padding = (jnp.arange(len(state.prompts)) >= count)[:, None]
  return state._replace(done=state.done | padding)


def to_training(responses: Any, count: int) -> Any:
  """The rows of the first `count` prompts, outside the context, as the current mesh splits them."""
  if not _is_laid_out(responses):
    return responses
  return _take_rows(responses, count)


@partial(jax.jit, static_argnames='count')
def _take_rows(responses, count):
  take = lambda leaf: sharding.place_rows(leaf[:count])
  return jax.tree.map(take, responses)
