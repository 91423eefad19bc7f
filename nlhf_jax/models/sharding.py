"""Sharding on a mesh of devices: one table for the parameters of all slots, and rows for examples.

The mesh has the axes `data` (own examples, all parameters), `fsdp` (own examples, a part of every
parameter) and `tensor` (the same examples, a part of the heads and hidden units). `jax.set_mesh`
sets the mesh; without one, the functions here change nothing. An axis that does not divide the size
of a parameter's axis is not used for it. Rows that do not divide are split all the same: the
compiler pads them.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from nlhf_jax.errors import UserError
from nlhf_jax.ranges import AtLeastOne, Count

AXES = ('data', 'fsdp', 'tensor')
ROW_AXES = ('data', 'fsdp')

# Path of a parameter -> the mesh axis that each of its axes is split over.
PARAMETER_AXES = (
  (r'(query|key|value|gate|up|head)/kernel$', ('fsdp', 'tensor')),
  (r'(out|down)/kernel$', ('tensor', 'fsdp')),
  (r'(query|key|value|gate|up)/bias$', ('tensor',)),
  (r'embed/embedding$', ('tensor', 'fsdp')),
  (r'position_table/embedding$', (None, 'fsdp')),
  (r'/lora_a$', ('fsdp', None)),
  (r'/lora_b$', (None, 'fsdp')),
)


_absent: ContextVar[Sequence[Any]] = ContextVar('absent devices', default=())


@contextlib.contextmanager
def use_devices(absent: Sequence[Any]) -> Iterator[None]:
  """A context in which programs are compiled for these devices, which need not be there."""
  token = _absent.set(absent)
  try:
    yield
  finally:
    _absent.reset(token)


def devices() -> Sequence[Any]:
  """The devices that programs are compiled for: those of JAX, unless `use_devices` names others."""
  return _absent.get() or jax.devices()


def make_mesh(data: Count, fsdp: AtLeastOne, tensor: AtLeastOne) -> jax.sharding.Mesh:
  """A mesh over all devices; `data` = 0 takes those that the other axes leave.

  Raises:
    UserError: if the axes do not multiply to the number of devices, or the slices of a TPU cannot
      share the examples equally.
  """
  count = len(devices())
  data = data or max(count // (fsdp * tensor), 1)
  if data * fsdp * tensor != count:
    raise UserError(
      f'config.mesh: data={data} x fsdp={fsdp} x tensor={tensor} must be the {count} devices there '
      'are; data=0 takes those that the other axes leave.'
    )
  shape, types, slices = (data, fsdp, tensor), (AxisType.Auto,) * len(AXES), find_slices()
  if len(slices) == 1:
    return jax.make_mesh(shape, AXES, axis_types=types, devices=slices[0])
  return jax.sharding.Mesh(arrange_slices(shape, slices), AXES, axis_types=types)


def find_slices() -> list[list[Any]]:
  """The devices of each slice: TPUs with fast links to one another, slow ones to other slices."""
  found = list(devices())
  # Hosts with GPUs are slices to JAX, but parameters may well be split over their network.
  if found[0].platform != 'tpu':
    return [found]
  slices: dict[int, list[Any]] = {}
  for device in found:
    # Devices that are absent have no number of a slice: they are one.
    slices.setdefault(getattr(device, 'slice_index', 0), []).append(device)
  return list(slices.values())


def arrange_slices(shape: tuple[int, int, int], slices: Sequence[Sequence[Any]]) -> np.ndarray:
  """The devices in the shape of the mesh; of its axes, `data` alone goes across slices.

  So what passes between slices is one sum of the gradients a step.

  Args:
    shape: of the mesh.
    slices: the devices of each.

  Raises:
    UserError: if the number of slices does not divide the axis `data`.
  """
  (data, *rest), count = shape, len(slices)
  if data % count:
    raise UserError(
      f'config.mesh.data={data} must be a multiple of the {count} slices that there are, since '
      'between slices only examples are split; lower fsdp or tensor, or use other slices.'
    )
  devices = [device for part in slices for device in part]
  return mesh_utils.create_hybrid_device_mesh(
    (data // count, *rest), (count, 1, 1), devices, allow_split_physical_axes=True
  )


def spec(axes: tuple, shape: tuple[int, ...]) -> PartitionSpec:
  """The axes, each None where its size on the current mesh does not divide that of the array."""
  sizes = axis_sizes()

  def fits(axis, size):
    names = (axis,) if isinstance(axis, str) else axis or ()
    return size % math.prod(sizes[name] for name in names) == 0

  axes = map(automatic, axes)
  return PartitionSpec(
    *(axis if fits(axis, size) else None for axis, size in zip(axes, shape, strict=True))
  )


def automatic(axes: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
  """The axes that no enclosing `shard_map` has split already, which leaves them to the compiler."""
  manual = jax.sharding.get_abstract_mesh().manual_axes
  if not manual or axes is None:
    return axes
  names = (axes,) if isinstance(axes, str) else axes
  return tuple(name for name in names if name not in manual) or None


def parameter_spec(path: str, shape: tuple[int, ...]) -> PartitionSpec:
  """How a parameter, or an optimiser state of its shape, is split."""
  for pattern, axes in PARAMETER_AXES:
    # Stacked adapters have another axis in front.
    if re.search(pattern, path) and len(shape) >= len(axes):
      return spec((None,) * (len(shape) - len(axes)) + axes, shape)
  return PartitionSpec()


def use_mesh(mesh: jax.sharding.Mesh) -> contextlib.AbstractContextManager:
  """A context in which this mesh is the current one; no change if it is empty."""
  return contextlib.nullcontext() if mesh.empty else jax.set_mesh(mesh)


def has_mesh() -> bool:
  """Whether there is a current mesh."""
  return not jax.sharding.get_abstract_mesh().empty


def axis_sizes() -> dict[str, int]:
  """Axis of the current mesh -> the number of devices along it."""
  return dict(jax.sharding.get_abstract_mesh().shape)


def copies_of_key_heads(heads: int, key_heads: int) -> int:
  """How often each key head is repeated, so that `tensor` splits heads and caches; 1 for no need.

  A device then has the key head of its own query heads, not all of them. Where the axis does not
  divide the heads, nothing is repeated, and all devices along it have all keys.
  """
  parts = axis_sizes().get('tensor', 1)
  copies = parts // math.gcd(parts, key_heads)
  return copies if heads % (key_heads * copies) == 0 else 1


def example_shards() -> int:
  """The number of parts that a batch is split into."""
  return math.prod(axis_sizes()[axis] for axis in automatic(ROW_AXES) or ()) if has_mesh() else 1


def shard_parameters(tree: Any) -> Any:
  """Shards parameters and optimiser states by the table, inside a jitted function."""
  if not has_mesh():
    return tree

  def constrain(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return lax.with_sharding_constraint(leaf, parameter_spec(name, leaf.shape))

  return jax.tree_util.tree_map_with_path(constrain, tree)


def shard_rows(x: Array, *rest: str | None) -> Array:
  """Splits the first axis over examples and the next over `rest`, inside a jitted function."""
  if not has_mesh():
    return x
  axes = spec((None, *rest, *(None,) * (x.ndim - 1 - len(rest))), x.shape)
  return lax.with_sharding_constraint(x, PartitionSpec(automatic(ROW_AXES), *axes[1:]))


def pad_rows(x: Array) -> Array:
  """The rows, and as many of zeros as the mesh needs to split them equally."""
  return jnp.pad(x, ((0, -len(x) % example_shards()), *((0, 0),) * (x.ndim - 1)))


def place_rows(x: Array) -> Array:
  """Splits the first axis of a result over examples, if that divides it; in a jitted function."""
  return shard_axes(x, ROW_AXES, *(None,) * (x.ndim - 1))


def shard_axes(x: Array, *axes: str | tuple[str, ...] | None) -> Array:
  """Splits each axis of x over an axis of the mesh, inside a jitted function."""
  return lax.with_sharding_constraint(x, spec(axes, x.shape)) if has_mesh() else x


def parameter_sharding(path: str, leaf: Any) -> jax.sharding.Sharding:
  """The sharding of a parameter that is loaded from a file."""
  if not has_mesh():
    return jax.sharding.SingleDeviceSharding(devices()[0])
  return NamedSharding(jax.sharding.get_mesh(), parameter_spec(path, leaf.shape))


def put_parameters(tree: Any) -> Any:
  """Shards parameters and optimiser states on the devices as the table says.

  The arrays are committed to their devices, as those are that an update returns: `jax.jit` compiles
  a program twice if its first arguments are not.
  """

  def commit(leaf):
    committed = getattr(leaf, 'committed', True)  # an array that is traced has no place yet
    return leaf if committed else jax.device_put(leaf, leaf.sharding)

  return jax.tree.map(commit, jax.jit(shard_parameters)(tree) if has_mesh() else tree)


def local_rows(count: int) -> np.ndarray:
  """Which of `count` rows are on a device of this process, [count]."""
  local = np.ones(count, bool)
  if has_mesh():
    where = NamedSharding(jax.sharding.get_mesh(), spec((ROW_AXES,), local.shape))
    local[:] = False
    for (rows,) in where.addressable_devices_indices_map(local.shape).values():
      local[rows] = True
  return local


def put_rows(examples: Any) -> Any:
  """Shards a batch by rows; each process reads its local rows only (see `local_rows`)."""
  if not has_mesh():
    return examples
  mesh = jax.sharding.get_mesh()

  def put(leaf):
    leaf = np.asarray(leaf)
    where = NamedSharding(mesh, spec((ROW_AXES, *(None,) * (leaf.ndim - 1)), leaf.shape))
    return jax.make_array_from_callback(leaf.shape, where, lambda index: leaf[index])

  return jax.tree.map(put, examples)
