"""How arrays lie on a mesh of devices: one table for every slot, and rows for examples.

The axes of the mesh are `data` (each has its own examples and all parameters), `fsdp` (its own
examples and a part of every parameter) and `tensor` (the same examples, and some of the heads and
hidden units). A mesh is in force between `jax.set_mesh` and the end of the run; without one, all
functions here leave things as they are. An axis that does not divide a size is not used for it.
"""

import contextlib
import math
import re
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from nlhf_jax.errors import UserError
from nlhf_jax.ranges import AtLeastOne, Count

AXES = ('data', 'fsdp', 'tensor')
ROW_AXES = ('data', 'fsdp')

# Path of a parameter -> the axis that each of its own axes is split over.
PARAMETER_AXES = (
  (r'(query|key|value|gate|up|head)/kernel$', ('fsdp', 'tensor')),
  (r'(out|down)/kernel$', ('tensor', 'fsdp')),
  (r'(query|key|value|gate|up)/bias$', ('tensor',)),
  (r'embed/embedding$', ('tensor', 'fsdp')),
  (r'places/embedding$', (None, 'fsdp')),
  (r'/lora_a$', ('fsdp', None)),
  (r'/lora_b$', (None, 'fsdp')),
)


def make_mesh(data: Count, fsdp: AtLeastOne, tensor: AtLeastOne) -> jax.sharding.Mesh:
  """A mesh over all devices; `data` = 0 takes as many as the others leave.

  Raises:
    UserError: if the axes do not multiply to the number of devices.
  """
  count = jax.device_count()
  data = data or max(count // (fsdp * tensor), 1)
  if data * fsdp * tensor != count:
    raise UserError(
      f'config.mesh: data={data} x fsdp={fsdp} x tensor={tensor} must be the {count} devices there '
      'are; data=0 takes what the others leave.'
    )
  return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def spec(axes: tuple, shape: tuple[int, ...]) -> PartitionSpec:
  """What of the axes divides the sizes they are meant for, on the mesh in force."""
  sizes = jax.sharding.get_abstract_mesh().shape

  def fits(axis, size):
    names = (axis,) if isinstance(axis, str) else axis or ()
    return size % math.prod(sizes[name] for name in names) == 0

  return PartitionSpec(
    *(axis if fits(axis, size) else None for axis, size in zip(axes, shape, strict=True))
  )


def parameter_spec(path: str, shape: tuple[int, ...]) -> PartitionSpec:
  """Where a parameter, or what an optimiser keeps of it, lies."""
  for pattern, axes in PARAMETER_AXES:
    # Adapters that rows take turns with have an axis more, in front.
    if re.search(pattern, path) and len(shape) >= len(axes):
      return spec((None,) * (len(shape) - len(axes)) + axes, shape)
  return PartitionSpec()


def use_mesh(mesh: jax.sharding.Mesh) -> contextlib.AbstractContextManager:
  """Within it, this mesh is in force, if it is one."""
  return contextlib.nullcontext() if mesh.empty else jax.set_mesh(mesh)


def has_mesh() -> bool:
  """Whether there is a mesh in force."""
  return not jax.sharding.get_abstract_mesh().empty


def example_shards() -> int:
  """How many devices have examples of their own."""
  return (
    math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in ROW_AXES)
    if has_mesh()
    else 1
  )


def shard_parameters(tree: Any) -> Any:
  """Inside a compiled program: parameters, optimisers' memories and the like lie by the table."""
  if not has_mesh():
    return tree

  def constrained(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return lax.with_sharding_constraint(leaf, parameter_spec(name, leaf.shape))

  return jax.tree_util.tree_map_with_path(constrained, tree)


def shard_rows(x: Array, *rest: str | None) -> Array:
  """Inside a compiled program: the first axis of x is split over examples, the others as said."""
  return shard_axes(x, ROW_AXES, *rest, *(None,) * (x.ndim - 1 - len(rest)))


def shard_axes(x: Array, *axes: str | tuple[str, ...] | None) -> Array:
  """Inside a compiled program: each axis of x is split over that of the mesh."""
  return lax.with_sharding_constraint(x, spec(axes, x.shape)) if has_mesh() else x


def parameter_sharding(path: str, leaf: Any) -> jax.sharding.Sharding:
  """Where a parameter is to be put as it is read."""
  if not has_mesh():
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return NamedSharding(jax.sharding.get_mesh(), parameter_spec(path, leaf.shape))


def put_parameters(tree: Any) -> Any:
  """Puts parameters, optimisers' memories and the like where the table says."""
  return jax.jit(shard_parameters)(tree) if has_mesh() else tree


def local_rows(count: int) -> np.ndarray:
  """Which of so many rows some device of this process holds, [count]."""
  here = np.ones(count, bool)
  if has_mesh():
    where = NamedSharding(jax.sharding.get_mesh(), spec((ROW_AXES,), here.shape))
    here[:] = False
    for (rows,) in where.addressable_devices_indices_map(here.shape).values():
      here[rows] = True
  return here


def put_rows(examples: Any) -> Any:
  """Puts a batch on the mesh by rows; each process puts its own rows, and has to have those."""
  if not has_mesh():
    return examples
  mesh = jax.sharding.get_mesh()

  def placed(leaf):
    leaf = np.asarray(leaf)
    where = NamedSharding(mesh, spec((ROW_AXES, *(None,) * (leaf.ndim - 1)), leaf.shape))
    return jax.make_array_from_callback(leaf.shape, where, lambda index: leaf[index])

  return jax.tree.map(placed, examples)
