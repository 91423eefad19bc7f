"""Layers of a decoder in one array each, [L, ...], or numbered one by one.

Training, scoring and judging scan over stacked layers, so that programs do not grow with depth:
`attentions/query/kernel` [L, D, E]. Files, and decoding, have them one by one:
`attentions_3/query/kernel` [D, E].
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nlhf_jax import trees
from nlhf_jax.models import sharding
from nlhf_jax.structs import Params

GROUPS = (
  'attention_norms',
  'attentions',
  'attention_post_norms',
  'feed_forward_norms',
  'feed_forwards',
  'feed_forward_post_norms',
)


def split(params: Params) -> tuple[dict, dict]:
  """The stacked layers, and everything else."""
  return trees.split(params, lambda path: path.split('/')[0] in GROUPS)


def in_stacked(path: str) -> bool:
  """Whether the parameter at this path is that of all layers, [L, ...]."""
  return any(name in GROUPS for name in path.split('/'))


def unstack(params: Params) -> dict:
  """The parameters with numbered layers; those of a tree that has no stacked ones, unchanged.

  Leaves may be arrays or their shapes.
  """
  numbered = {}
  for path, leaf in trees.flatten(params).items():
    if path.split('/')[0] in GROUPS:
      numbered |= {numbered_path(path, number): row for number, row in enumerate(_rows(leaf))}
    else:
      numbered[path] = leaf
  return trees.unflatten(numbered)


def unstack_slots(slots: Mapping[str, Params]) -> dict[str, dict]:
  """Slot -> its parameters with numbered layers; arrays that slots share are taken apart once.

  In the memory of one CPU, layers are views where they are aligned; an update then cannot reuse
  the memory of an array that has views. Elsewhere each layer is a call of one small program: one
  that takes all layers apart has hundreds of results, and compiles for as long as decoding does.
  """
  rows, numbered = {}, {}  # id of a stacked array -> its part in each layer; slot -> path -> leaf
  for slot, params in slots.items():
    stacked, rest = map(trees.flatten, split(params))
    new = {path: leaf for path, leaf in stacked.items() if id(leaf) not in rows}
    rows |= {id(leaf): _view_layers(leaf) for leaf in new.values() if _on_one_cpu(leaf)}
    new = {path: leaf for path, leaf in new.items() if id(leaf) not in rows}
    if new:
      taken = [_take_layer(new, number) for number in range(len(next(iter(new.values()))))]
      rows |= {id(leaf): [layer[path] for layer in taken] for path, leaf in new.items()}
    numbered[slot] = rest | {
      numbered_path(path, number): row
      for path, leaf in stacked.items()
      for number, row in enumerate(rows[id(leaf)])
    }
  return {slot: trees.unflatten(leaves) for slot, leaves in numbered.items()}


def _on_one_cpu(leaf: Any) -> bool:
  if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
    return False
  return [device.platform for device in leaf.devices()] == ['cpu']


def _view_layers(leaf: jax.Array) -> list[jax.Array]:
  """Its part in each layer, in the memory of the whole; JAX does not donate an array with views."""
  (device,) = leaf.devices()
  return [jax.device_put(row, device) for row in np.asarray(leaf)]


@jax.jit
def _take_layer(stacked, number):
  take = lambda leaf: lax.dynamic_index_in_dim(leaf, number, keepdims=False)
  return sharding.shard_parameters(jax.tree.map(take, stacked))


def to_bits(params: Params) -> Params:
  """The parameters with bfloat16 as the uint16 of the same bits, on CPUs; no gradient passes.

  XLA on CPUs has no slices of bfloat16: it converts all layers to float32 before a scan over them,
  which takes twice the memory of the weights. Of uint16, each layer is sliced as it is.
  """
  if sharding.devices()[0].platform != 'cpu':
    return params
  return _reinterpret(params, jnp.bfloat16, jnp.uint16)


def from_bits(params: Params) -> Params:
  """What `to_bits` was given, or a layer of it."""
  return _reinterpret(params, jnp.uint16, jnp.bfloat16)


def _reinterpret(params: Params, one: Any, other: Any) -> Params:
  return jax.tree.map(
    lambda leaf: lax.bitcast_convert_type(leaf, other) if leaf.dtype == one else leaf, params
  )


def _rows(leaf: Any) -> Iterator[Any]:
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return iter([jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)] * leaf.shape[0])
  return iter(leaf)


def stack(params: Params) -> dict:
  """The parameters with stacked layers, from those with numbered ones."""
  rows, stacked = {}, {}
  for path, leaf in trees.flatten(params).items():
    if match := re.fullmatch(rf'({"|".join(GROUPS)})_(\d+)(/.*)', path):
      group, number, rest = match.groups()
      rows.setdefault(f'{group}{rest}', {})[int(number)] = leaf
    else:
      stacked[path] = leaf
  for path, numbered in rows.items():
    stacked[path] = jnp.stack([numbered[number] for number in sorted(numbered)])
  return trees.unflatten(stacked)


def numbered_path(path: str, number: int) -> str:
  """Where a layer's part of a stacked parameter is among numbered layers."""
  group, _, rest = path.partition('/')
  return f'{group}_{number}/{rest}'


def one(params: Params, number: int) -> dict:
  """The parameters of a layer of numbered ones, without the number."""
  return {group: params[f'{group}_{number}'] for group in GROUPS if f'{group}_{number}' in params}
