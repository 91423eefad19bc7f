"""Locks between runs. The operating system frees them when their process ends, however it ends.

A lock file stays behind, and does no harm: what counts is whether a process holds the lock on it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from nlhf_jax import distributed
from nlhf_jax.errors import UserError


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
  """Holds the lock of a folder, which is made if need be, or fails at once.

  Of several processes of a run, the first takes the lock for all.

  Raises:
    UserError: in all processes, if another run holds the lock.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as held:
    taken = False
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


def wait_for_lock(path: Path) -> FileLock:
  """A context that waits until no other process holds the lock on the file `path`, and holds it."""
  return FileLock(path)
