"""Locks between runs. The operating system frees them when their process ends, however it ends.

A lock file stays behind, and does no harm: what counts is whether a process holds the lock on it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from nlhf_jax import distributed
from nlhf_jax.errors import UserError
from nlhf_jax.storage import disk


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
  """Holds the lock of a folder, which is made if need be, or fails at once.

  Of several processes of a run, the first takes the lock for all.

  Raises:
    UserError: in all processes, if another run holds the lock; or if the disk refuses the file.
  """
  with contextlib.ExitStack() as held:
    taken = False
    with disk.writing(folder):
      folder.mkdir(parents=True, exist_ok=True)
      if distributed.is_first():
        try:
          held.enter_context(FileLock(folder / '.lock', blocking=False))
        except Timeout:
          taken = True
    if distributed.any_process(taken):
      raise UserError(
        f'another run is at work in {folder}, and nothing was changed; wait for it to end, or '
        'give another --workdir.'
      )
    yield


@contextlib.contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
  """Waits until no other process holds the lock on the file `path`, and holds it.

  Raises:
    UserError: if the disk refuses the file.
  """
  with disk.writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path).acquire()
  with held:
    yield
