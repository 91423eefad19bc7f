"""What a disk refused, in one sentence: the path, the reason, the bytes and the remedy."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from nlhf_jax.errors import Interrupted, UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (*FULL, errno.EROFS)  # by writes only
# Errors of the medium, not of a name that a user gave.
FAILED = (*REFUSED, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN)
MORE_ROOM = 'make room there'
OTHER_FOLDER = 'make it writable, or give another folder'
RESUME = 'and run the same command again: it continues from what was saved'

# The file of a checkpoint in a message of TensorStore, and the number of the system's error.
_CHECKPOINT_ERROR = re.compile(r'"(?P<path>/[^"]+)".*os_error_code=\'(?P<number>\d+)\'', re.DOTALL)


@contextlib.contextmanager
def writing(*places: Path) -> Iterator[None]:
  """Raises what a disk refused in the block, whoever wrote, as a `UserError` that explains it.

  Args:
    places: files or folders that the block writes to; the first is named where the error names no
      file.

  Raises:
    UserError: for an error of the operating system that concerns one of the places, or the disk.
  """
  try:
    yield
  except (UserError, Interrupted):
    raise
  except Exception as error:
    for one in _chain(error):
      if found := _find_refusal(one, places):
        raise refusal(*found) from None
    raise


def refusal(number: int, path: str | Path) -> UserError:
  """The error that explains why the operating system refused to write to a path.

  Args:
    number: of the system's error, one of `errno`.
    path: a file or folder.
  """
  remedy = MORE_ROOM if number in FULL else OTHER_FOLDER
  return UserError(
    f"cannot write to '{path}': {os.strerror(number)} ({_room(Path(path))}); {remedy}, {RESUME}."
  )


def _room(path) -> str:
  """The bytes of a file, and those that are free on its disk."""
  written = ''
  with contextlib.suppress(OSError):
    written = f'{path.stat().st_size:,} bytes written, ' if path.is_file() else ''
  for folder in path.absolute().parents:
    with contextlib.suppress(OSError):
      return f'{written}{shutil.disk_usage(folder).free:,} bytes free'
  return f'{written}its disk cannot be reached'


def _chain(error) -> Iterator[BaseException]:
  """An error, and those that it followed from."""
  seen = []
  while error is not None and error not in seen:
    yield error
    seen.append(error)
    error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _find_refusal(error, places) -> tuple[int, str | Path] | None:
  """The number of the system's error and the path, if it concerns the places or the disk."""
  if found := _CHECKPOINT_ERROR.search(str(error)):
    return int(found['number']), found['path']
  if not isinstance(error, OSError) or error.errno is None:
    return None
  if error.errno in REFUSED or (error.filename is None and error.errno in FAILED):
    return error.errno, error.filename or places[0]
  if error.filename is None:
    return None
  path = Path(os.fsdecode(error.filename)).absolute()
  # The error may name a parent that is missing.
  ours = (path.is_relative_to(it) or it.is_relative_to(path) for it in map(Path.absolute, places))
  return (error.errno, error.filename) if any(ours) else None
