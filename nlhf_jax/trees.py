"""Nested dicts of arrays: by path, split in two, and stacked for several slots."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict


def flatten(tree: Mapping) -> dict[str, Any]:
  """path -> leaf, with names joined by slashes."""
  return flatten_dict(tree, sep='/')


def unflatten(leaves: Mapping[str, Any]) -> dict:
  """The tree with these paths."""
  return unflatten_dict(leaves, sep='/')


def split(tree: Mapping, wanted: Callable[[str], bool]) -> tuple[dict, dict]:
  """The tree of the leaves whose paths are wanted, and that of the others."""
  parts = ({}, {})
  for path, leaf in flatten(tree).items():
    parts[not wanted(path)][path] = leaf
  return unflatten(parts[0]), unflatten(parts[1])


def merge(*trees: Mapping) -> dict:
  """One tree with the leaves of all; later trees win."""
  return unflatten({path: leaf for tree in trees for path, leaf in flatten(tree).items()})


def slot_params(slots: Mapping[str, Any], slot: str) -> Any:
  """All parameters of a slot: its own and those of the base, if there is one."""
  return merge(slots['base'], slots[slot]) if 'base' in slots else slots[slot]


def stack_slots(slots: Mapping[str, Any], names: Sequence[str]) -> Any:
  """Parameters for rows that belong to the named slots in turn.

  The slots' own leaves are stacked, those of the base are shared. Without a base, all names must be
  the same.
  """
  if len(set(names)) == 1:
    return slot_params(slots, names[0])

  def stack(*leaves):
    # Adapters of stacked layers are [L, rows, columns]: the layers stay in front.
    return jnp.stack(leaves, axis=max(leaves[0].ndim - 2, 0))

  stacked = jax.tree.map(stack, *(slots[name] for name in names))
  return merge(slots['base'], stacked)
