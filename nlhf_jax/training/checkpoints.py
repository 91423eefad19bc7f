"""Checkpoints of all that training changes; its step is the position in the data as well."""

from pathlib import Path

import jax
from orbax.checkpoint import v1 as orbax

from nlhf_jax.structs import TrainState


class Checkpoints:
  """The latest checkpoint in a folder. Saves are atomic, and written while training goes on."""

  def __init__(self, folder: Path):
    latest = orbax.training.preservation_policies.LatestN(1)
    self._checkpointer = orbax.training.Checkpointer(
      folder.absolute(), preservation_policy=latest, cleanup_tmp_directories=True
    )
    self._writing = None

  def save(self, state: TrainState) -> None:
    """Saves the state unless this step is saved already.

    Returns when the state may be donated; what goes wrong later is raised by the next call.
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
    """The latest saved state, laid out as `state` is; `state` itself where nothing is saved."""
    self._wait()
    latest = self._checkpointer.latest
    if latest is None:
      return state

    def layout(leaf):
      return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    moving = jax.tree.map(layout, state._replace(fixed={}))
    return self._checkpointer.load(latest.step, moving)._replace(fixed=state.fixed)

  def close(self) -> None:
    """Releases the folder, when all is written."""
    try:
      self._wait()
    finally:
      self._checkpointer.close()
