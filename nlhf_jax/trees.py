"""Nested dicts of arrays, as paths, and in two parts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict


def flatten(tree: Mapping) -> dict[str, Any]:
  """Path -> leaf, with names joined by slashes."""
  return flatten_dict(tree, sep='/')


def unflatten(leaves: Mapping[str, Any]) -> dict:
  """The tree of those paths."""
  return unflatten_dict(leaves, sep='/')


def split(tree: Mapping, wanted: Callable[[str], bool]) -> tuple[dict, dict]:
  """The leaves whose paths are wanted, and the others."""
  leaves = flatten(tree)
  yes = {path: leaf for path, leaf in leaves.items() if wanted(path)}
  return unflatten(yes), unflatten({path: leaf for path, leaf in leaves.items() if path not in yes})


def merge(*trees: Mapping) -> dict:
  """One tree with the leaves of all."""
  return unflatten({path: leaf for tree in trees for path, leaf in flatten(tree).items()})


def slot_params(slots: Mapping[str, Any], slot: str) -> Any:
  """All parameters of a slot: its own and, if there is one, those of the base."""
  return merge(slots['base'], slots[slot]) if 'base' in slots else slots[slot]


def stack_slots(slots: Mapping[str, Any], names: Sequence[str]) -> Any:
  """Parameters for rows that take turns: own leaves of the slots stacked, the base as it is.

  Without a base, all names have to be the same.
  """
  if len(set(names)) == 1:
    return slot_params(slots, names[0])
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(slots[name] for name in names))
  return merge(slots['base'], stacked)
