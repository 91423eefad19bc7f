"""Checkpoints of the training state; its step is also the position in the data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as orbax

from nlhf_jax.errors import UserError
from nlhf_jax.structs import Params, TrainState


class Checkpoints:
  """The latest checkpoint in a folder. Saves are atomic and run while training continues."""

  def __init__(self, folder: Path):
    latest = orbax.training.preservation_policies.LatestN(1)
    self._checkpointer = orbax.training.Checkpointer(
      folder.absolute(), preservation_policy=latest, cleanup_tmp_directories=True
    )
    self._writing = None

  def save(self, state: TrainState) -> None:
    """Saves the state, unless its step is saved already.

    Returns as soon as the state may be donated; the next call raises errors of the background save.
    """
    self._wait()
    step = int(state.step)
    latest = self._checkpointer.latest
    if latest is None or latest.step != step:
      self._writing = self._checkpointer.save_async(step, state._replace(fixed={}))

  def _wait(self) -> None:
    writing, self._writing = self._writing, None
    if writing is not None:
      writing.result()

  def restore(self, state: TrainState) -> TrainState:
    """The latest saved state, sharded as `state` is; `state` itself if nothing is saved.

    Raises:
      UserError: if the saved state has other parameters.
    """
    self._wait()
    latest = self._checkpointer.latest
    if latest is None:
      return state
    moving = _layout(state._replace(fixed={}))
    try:
      return self._checkpointer.load(latest.step, moving)._replace(fixed=state.fixed)
    except KeyError as error:  # orbax names neither what is missing nor what is there
      raise _other_parameters(self._checkpointer.directory) from error

  def close(self) -> None:
    """Waits for saves and releases the folder."""
    try:
      self._wait()
    finally:
      self._checkpointer.close()


def load_slots(folder: Path, slots: Mapping[str, Params]) -> dict[str, Params]:
  """The slots of the latest checkpoint in a folder, sharded as `slots`; `slots` if there is none.

  The rest of the checkpoint is not read.

  Raises:
    UserError: if the checkpoint lacks some of the slots' parameters.
  """
  context = orbax.Context()
  context.pytree.loading.partial_load = True
  with context, orbax.training.Checkpointer(folder.absolute()) as checkpointer:
    latest = checkpointer.latest
    if latest is None:
      return dict(slots)
    loaded = checkpointer.load(latest.step, {'params': _layout(dict(slots))})['params']
  if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(loaded)):
    raise _other_parameters(folder)
  return loaded


def _other_parameters(folder: Any) -> UserError:
  return UserError(
    f'{folder}: this checkpoint has other parameters than the model, as those of an earlier '
    'version of nlhf_jax have; delete the folder of the stage, or use another --stages.'
  )


def _layout(tree: Any) -> Any:
  """Shapes, types and shardings."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
  )
