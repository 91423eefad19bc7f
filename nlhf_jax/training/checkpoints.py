"""Checkpoints of the training state; its step is also the position in the data.

The two latest are kept. A checkpoint counts once its manifest is written, which has a digest of
every file and comes after all of them have reached the disk. One that does not agree with its
manifest is set aside, and training resumes from the one before.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as orbax

from nlhf_jax import distributed
from nlhf_jax.errors import UserError
from nlhf_jax.storage import store
from nlhf_jax.structs import Params, TrainState
from nlhf_jax.training.first_process_checkpoints import FirstProcessCheckpoints

KEPT = 2
MANIFEST = 'manifest-{}.json'  # beside the folder of the step, which orbax alone writes to
UNFINISHED = 'is incomplete: a run ended while it was written or removed'
MISSING = 'is missing'


class Checkpoints:
  """The latest checkpoints in a folder. Saves are atomic and run while training continues.

  Raises:
    UserError: if there are checkpoints, and all of them are damaged.
  """

  def __init__(self, folder: Path):
    self._folder = folder.absolute()
    distributed.compute_on_first(lambda: set_damaged_aside(self._folder), ())
    self._files = _open(self._folder)
    self._thread = ThreadPoolExecutor(1, 'checkpoints')
    self._writing: Future | None = None

  def save(self, state: TrainState) -> None:
    """Saves the state, unless its step is saved already.

    Returns as soon as the state may be donated; the next call raises errors of the background save.
    """
    self._wait()
    step = int(state.step)
    if self._files.latest() != step:
      self._files.save(step, _saved_part(state))
      self._writing = self._thread.submit(self._commit, step)

  def _commit(self, step: int) -> None:
    """Waits until orbax has finished a save; then writes its manifest, and removes older ones."""
    self._files.wait()
    if distributed.is_first():
      write_manifest(self._folder, step)
      for old in saved_steps(self._folder)[KEPT:]:
        _delete(self._folder, old)
      store.push()

  def _wait(self) -> None:
    writing, self._writing = self._writing, None
    if writing is not None:
      writing.result()

  def restore(self, state: TrainState) -> TrainState:
    """The latest saved state, sharded as `state` is; `state` itself if nothing is saved.

    Raises:
      UserError: if the saved state has other parameters, or another state of the optimiser.
    """
    self._wait()
    latest = self._files.latest()
    if latest is None:
      return state
    try:
      loaded = self._files.load(latest, _layout(_saved_part(state)))
    except (KeyError, ValueError) as error:  # orbax names neither what is missing nor what is there
      raise _other_parameters(self._folder) from error
    return loaded._replace(fixed=state.fixed, nonfinite=state.nonfinite)

  def describe_latest(self) -> str:
    """Where the latest checkpoint is, in words."""
    latest = self._files.latest()
    return (
      'its beginning' if latest is None else f'the checkpoint of step {latest} in {self._folder}'
    )

  def close(self) -> None:
    """Waits for saves and releases the folder."""
    try:
      self._wait()
    finally:
      self._thread.shutdown()
      self._files.close()


class _SharedCheckpoints:
  """The checkpoints in a folder that all processes share: each writes its parts of the arrays."""

  def __init__(self, folder: Path):
    self._checkpointer = orbax.training.Checkpointer(folder, cleanup_tmp_directories=True)
    self._saved: Any = None

  def latest(self) -> int | None:
    latest = self._checkpointer.latest
    return latest and latest.step

  def save(self, step: int, tree: Any) -> None:
    self._saved = self._checkpointer.save_async(step, tree)

  def wait(self) -> None:
    self._saved.result()

  def load(self, step: int, layout: Any, partial: bool = False) -> Any:
    context = orbax.Context()
    context.pytree.loading.partial_load = partial
    with context:
      return self._checkpointer.load(step, layout)

  def close(self) -> None:
    self._checkpointer.close()


def _open(folder: Path) -> _SharedCheckpoints | FirstProcessCheckpoints:
  """The checkpoints in a folder, which differs between machines if they have their own."""
  return (FirstProcessCheckpoints if distributed.has_own_folders() else _SharedCheckpoints)(folder)


def load_slots(folder: Path, slots: Mapping[str, Params]) -> dict[str, Params]:
  """The slots of the latest checkpoint in a folder, sharded as `slots`; `slots` if there is none.

  The rest of the checkpoint is not read. Whether it is whole is for the caller to check.

  Raises:
    UserError: if the checkpoint lacks some of the slots' parameters, or has others.
  """
  return _load_part(folder, {'params': dict(slots)})['params']


def load_player(folder: Path, name: str, params: Params) -> Params:
  """The parameters of a player beside the policy, from the latest checkpoint, as `load_slots`."""
  loaded = _load_part(folder, {'in_flight': {name: {'params': params}}})
  return loaded['in_flight'][name]['params']


def _load_part(folder, tree):
  with contextlib.closing(_open(folder.absolute())) as files:
    latest = files.latest()
    if latest is None:
      return tree
    try:
      loaded = files.load(latest, _layout(tree), partial=True)
    except (KeyError, ValueError) as error:  # as of a parameter of another shape
      raise _other_parameters(folder) from error
  if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(loaded)):
    raise _other_parameters(folder)
  return loaded


def _other_parameters(folder: Any) -> UserError:
  return UserError(
    f'{folder}: this checkpoint has other parameters than the model, or another state of the '
    'optimiser, as those of an earlier version of nlhf_jax have; delete the folder of the stage, '
    'or use another --stages.'
  )


def _saved_part(state: TrainState) -> TrainState:
  return state._replace(fixed={}, nonfinite=None)


def _layout(tree: Any) -> Any:
  """Shapes, types and shardings."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
  )


# --- Manifests ---


def saved_steps(folder: Path) -> list[int]:
  """The steps of the checkpoints in a folder, latest first, whether or not they are whole."""
  names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
  steps = {re.sub(r'^manifest-|\.json$', '', name) for name in names}
  return sorted((int(step) for step in steps if step.isdigit()), reverse=True)


def find_damage(folder: Path, step: int) -> str | None:
  """What is wrong with the checkpoint of a step, in words; None if it is as it was written."""
  manifest = folder / MANIFEST.format(step)
  if not (folder / str(step)).is_dir():
    return MISSING
  if not manifest.exists():
    return UNFINISHED
  try:
    for name, (size, digest) in json.loads(manifest.read_bytes())['sha256'].items():
      path = folder / name
      if not path.is_file():
        return f'is damaged: its file {name} is missing'
      if path.stat().st_size != size:
        return f'is damaged: its file {name} has {path.stat().st_size} bytes, not {size}'
      if _digest(path) != digest:
        return f'is damaged: its file {name} has changed since it was written'
  except (ValueError, KeyError, TypeError, AttributeError):
    return f'is damaged: {manifest.name} is no manifest'
  return None


def set_damaged_aside(folder: Path) -> np.ndarray:
  """Leaves the folder with whole checkpoints, or without any; prints what was wrong.

  What a stopped run left incomplete is deleted; a damaged checkpoint moves to the folder above, as
  `STEP.damaged`.

  Returns:
    The latest step, or -1.

  Raises:
    UserError: if a checkpoint is damaged, and none is whole. Nothing is changed then.
  """
  found = {step: find_damage(folder, step) for step in saved_steps(folder)}
  latest = next((step for step, text in found.items() if text is None), -1)
  damaged = {step: text for step, text in found.items() if text not in (None, UNFINISHED, MISSING)}
  if damaged and latest < 0:
    step, text = next(iter(damaged.items()))
    raise UserError(
      f'no checkpoint in {folder} is whole (that of step {step} {text}); delete {folder.parent} to '
      'train this stage again.'
    )
  for step, text in found.items():
    # Those before the latest may be what is left of a checkpoint that was being removed.
    if text and (step > latest or step in damaged):
      after = f'step {latest}' if latest >= 0 else 'the beginning'
      print(f'The checkpoint of step {step} in {folder} {text}; going on from that of {after}.')
    if step in damaged:
      aside = folder.parent / f'{step}.damaged'
      shutil.rmtree(aside, ignore_errors=True)
      (folder / str(step)).rename(aside)
    if text:
      _delete(folder, step)
  return np.array(latest)


def _delete(folder: Path, step: int) -> None:
  """Deletes a checkpoint, its manifest first: without it, it does not count."""
  (folder / MANIFEST.format(step)).unlink(missing_ok=True)
  shutil.rmtree(folder / str(step), ignore_errors=True)


def write_manifest(folder: Path, step: int) -> None:
  """Writes the manifest of a finished checkpoint, when all of its files have reached the disk."""
  files = _files(folder / str(step))
  for path in [*files, *{parent for file in files for parent in file.parents}]:
    if path.is_relative_to(folder):
      _sync(path)
  digests = {str(path.relative_to(folder)): [path.stat().st_size, _digest(path)] for path in files}
  draft = folder / f'.{MANIFEST.format(step)}.draft'
  draft.write_text(json.dumps({'sha256': digests}, indent=1) + '\n')
  _sync(draft)
  os.replace(draft, folder / MANIFEST.format(step))
  _sync(folder)


def _files(folder: Path) -> list[Path]:
  return sorted(path for path in folder.rglob('*') if path.is_file())


def _digest(path: Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _sync(path: Path) -> None:
  """Waits until a file, or the names in a folder, have reached the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
