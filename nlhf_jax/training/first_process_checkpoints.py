"""Checkpoints of processes that share no file system: the first one writes and reads them.

Arrays pass between the processes by the network. The memory of the first one's machine must hold
one state of the training. The files are those that orbax writes in other runs.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as orbax

from nlhf_jax import distributed

ITEM = 'state'  # under which `orbax.checkpoint.v1` keeps a state


class FirstProcessCheckpoints:
  """The checkpoints in a folder of the first process; all processes must make the same calls."""

  def __init__(self, folder: Path):
    self._manager = None
    if distributed.is_first():
      folder.mkdir(parents=True, exist_ok=True)
      # Orbax would wait for the other processes.
      alone = orbax.options.MultiprocessingOptions(primary_host=0, active_processes={0})
      options = orbax.CheckpointManagerOptions(
        create=False, cleanup_tmp_directories=True, multiprocessing_options=alone
      )
      handler = orbax.PyTreeCheckpointHandler(multiprocessing_options=alone)
      self._manager = orbax.CheckpointManager(
        folder, options=options, item_handlers={ITEM: handler}
      )
    self._latest = distributed.value_from_first(lambda: self._manager.latest_step())

  def latest(self) -> int | None:
    """The latest step that is saved."""
    return self._latest

  def save(self, step: int, tree: Any) -> None:
    """Begins to save; returns when the arrays may be donated."""
    self._latest = step

    def copy(leaf):
      whole = distributed.fetch(leaf)
      return np.array(whole) if self._manager else None

    copied = jax.tree.map(copy, tree)
    if self._manager:
      state = orbax.args.Composite(**{ITEM: orbax.args.PyTreeSave(copied)})
      self._manager.save(step, args=state, force=True)

  def wait(self) -> None:
    """Waits until a save has ended."""
    if self._manager:
      self._manager.wait_until_finished()

  def load(self, step: int, layout: Any, partial: bool = False) -> Any:
    """The arrays of a step, with the shapes, types and shardings of a layout.

    Args:
      step: which is saved.
      layout: a tree of `jax.ShapeDtypeStruct`.
      partial: whether the checkpoint may have others, and lack some, which stay as they are.

    Raises:
      KeyError: in all processes, if it has other arrays.
    """
    leaves, structure = jax.tree.flatten(layout)
    values = [np.empty(leaf.shape, leaf.dtype) for leaf in leaves]

    def read():
      numpy = [orbax.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype) for leaf in leaves]
      restore = orbax.args.PyTreeRestore(
        layout, restore_args=jax.tree.unflatten(structure, numpy), partial_restore=partial
      )
      try:
        restored = self._manager.restore(step, args=orbax.args.Composite(**{ITEM: restore}))
      except (KeyError, ValueError):
        return None
      values[:] = jax.tree.leaves(restored[ITEM])
      alike = all(value.shape == leaf.shape for value, leaf in zip(values, leaves, strict=True))
      return [isinstance(value, np.ndarray) for value in values] if alike else None

    there = distributed.value_from_first(read)
    if there is None:
      raise KeyError(f'step {step} has other arrays')
    found = [
      _send(value, leaf) if known else leaf
      for value, leaf, known in zip(values, leaves, there, strict=True)
    ]
    return jax.tree.unflatten(structure, found)

  def close(self) -> None:
    """Releases the folder."""
    if self._manager:
      self._manager.close()


def _send(value: np.ndarray, layout: jax.ShapeDtypeStruct) -> jax.Array:
  """The first process's array, sharded as the layout says."""
  whole = distributed.send_from_first(value)
  return jax.make_array_from_callback(layout.shape, layout.sharding, lambda index: whole[index])
