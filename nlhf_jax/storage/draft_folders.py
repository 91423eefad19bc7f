"""Folders that are whole or not there: drafts that are renamed when they are complete."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nlhf_jax import distributed
from nlhf_jax.errors import UserError


@contextlib.contextmanager
def draft_folder(to: Path) -> Iterator[Path]:
  """Yields a new folder beside `to`, which becomes `to` when the block ends without an error.

  What is left of a draft whose process was killed is replaced. Of several processes, the first one
  makes and renames the folder; all continue together.

  Raises:
    UserError: if `to` is there and not an empty folder, or cannot be written.
  """
  to = to.resolve()
  if to.exists() and not (to.is_dir() and not any(to.iterdir())):
    raise UserError(f"'{to}' is not empty, or no folder; give a new folder.")
  draft = to.with_name(f'.{to.name}.draft')
  with distributed.first_process_only(str(to)) as mine:
    try:
      if mine:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
      yield draft
      if mine:
        _sync(draft)
        draft.rename(to)
    except OSError as error:
      raise UserError(
        f"cannot write '{to}': {error.strerror or error}; nothing is left there: give another "
        'folder, or make room and run again.'
      ) from None
    finally:
      if mine:
        shutil.rmtree(draft, ignore_errors=True)


def _sync(folder: Path) -> None:
  """Lets everyone read the files, and waits until they are on the disk."""
  for path in folder.iterdir():
    path.chmod(0o644)
    with path.open('rb') as file:
      os.fsync(file.fileno())
