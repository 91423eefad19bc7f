"""What the readers of all kinds of data files share: rows, their problems, and streams of bytes.

`formats` finds the reader of a file, which yields each row as a dictionary, or the problem with it.
Files are streamed, so that a few rows are in memory at once. Nothing is unpickled. CSV is not read,
because its cells have no types.
"""

import contextlib
import errno
import gzip
import io
import stat
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from nlhf_jax.errors import UserError, first_line

SUFFIXES = ('.jsonl', '.json', '.parquet', '.arrow')  # those of JSON also with .gz
MAX_EXPANSION = (
  100  # times its size that a compressed file may expand to; text expands about 10 times
)
SLACK = 2**20  # bytes that any compressed file may expand to

Row = tuple[int, Any]  # number of the row, from 1, and a mapping or a `Problem`


class Problem(Exception):
  """Why a row cannot be used; `reason` is without details, so that rows are counted by it."""

  def __init__(self, reason: str, detail: str = ''):
    super().__init__(reason + detail)
    self.reason = reason


def file_kind(path: Path) -> str:
  """The suffix of a file's name; that of compression is left out."""
  return (path.with_suffix('') if path.suffix == '.gz' else path).suffix


@contextlib.contextmanager
def checked_file(path: Path) -> Iterator[None]:
  """Turns errors of the operating system into a `UserError`; refuses pipes and devices."""
  with checked_path(path):
    if not stat.S_ISREG(path.stat().st_mode):
      raise OSError(errno.EINVAL, 'it is not a file')
    yield


@contextlib.contextmanager
def checked_path(path: Path) -> Iterator[None]:
  """Turns errors of the operating system into a `UserError` that names the path."""
  try:
    yield
  except OSError as error:
    reason = error.strerror or first_line(error)
    raise UserError(
      f"config.data.path: cannot read '{path}': {reason}; give a file, a folder of files, or the "
      'name of a dataset on the hub.'
    ) from None


def damaged_file(path: Path, error: Exception | str) -> UserError:
  """The error for a file whose content is damaged."""
  text = error if isinstance(error, str) else first_line(error)
  return UserError(f'{path} is damaged ({text}); download or write it again.')


def stream(path: Path, take: Callable[[Any], bytes]) -> Iterator[bytes]:
  """Yields what `take(uncompressed file)` returns, until the end of the file.

  Raises:
    UserError: if a compressed file is damaged, is cut short, or expands too much.
  """
  with path.open('rb') as raw:
    compressed = raw.peek(2)[:2] == b'\x1f\x8b'
    if path.suffix == '.gz' and not compressed and raw.peek(1):
      raise damaged_file(path, 'it is not compressed by gzip')
    file = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if compressed else raw
    total, most = 0, SLACK
    try:
      while piece := take(file):
        yield piece
        total += len(piece)
        if compressed and total > most:
          most = MAX_EXPANSION * raw.tell() + SLACK
          if total > most:
            raise expands_too_much(path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
      raise damaged_file(path, error) from None


def expands_too_much(path: Path) -> UserError:
  """The error for a compressed file that may be made to fill the memory."""
  return UserError(
    f'{path} expands to more than {MAX_EXPANSION} times its size, which no text does; '
    'unpack it, and check its content.'
  )


def import_extra(module: str, extra: str) -> Any:
  """Imports a module that only some sources need, and that the named extra installs.

  Raises:
    UserError: if it is not installed.
  """
  try:
    return import_module(module)
  except ImportError:
    raise UserError(
      f"config.data.path: this kind of data needs the package '{module}'; run "
      f"pip install '.[{extra}]' in a checkout."
    ) from None
