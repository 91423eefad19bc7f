"""Readers of files of several kinds: each row is a dictionary, or the problem with that row.

They read JSON lines and JSON arrays, plain or gzipped, Parquet, Arrow as `datasets` saves it, and
the array records of TensorFlow Datasets. Files are streamed, so that a few rows are in memory at
once (of a JSON array, all). Nothing is unpickled. CSV is not read, because its cells have no types.
"""

import contextlib
import errno
import gzip
import io
import json
import stat
import zlib
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from nlhf_jax.errors import UserError, first_line

MAX_LINE = 2**26  # bytes
MAX_ARRAY = 2**28  # bytes
MAX_EXPANSION = (
  100  # times its size that a compressed file may expand to; text expands about 10 times
)
SLACK = 2**20  # bytes that any compressed file may expand to
CHUNK = 64  # rows of a table in memory

Row = tuple[int, Any]  # number of the row, from 1, and a mapping or a `Problem`


class Problem(Exception):
  """Why a row cannot be used; `reason` is without details, so that rows are counted by it."""

  def __init__(self, reason: str, detail: str = ''):
    super().__init__(reason + detail)
    self.reason = reason


def file_kind(path: Path) -> str:
  """The suffix that determines how a file is read; that of compression is left out."""
  return (path.with_suffix('') if path.suffix == '.gz' else path).suffix


def read_rows(path: Path) -> Iterator[Row]:
  """Yields the rows of a file whose name ends with one of `KINDS`: dictionaries, or a `Problem`.

  Raises:
    UserError: if the file cannot be read, or not to its end.
  """
  if file_kind(path) not in KINDS:
    raise UserError(
      f"config.data.path: '{path}' has no suffix that can be read; give {', '.join(KINDS)}, "
      'those of JSON also with .gz.'
    )
  with checked_file(path):
    yield from KINDS[file_kind(path)](path)


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


def row_noun(path: Path) -> str:
  """The noun for a row of the file in messages."""
  return 'line' if file_kind(path) == '.jsonl' else 'row'


def damaged_file(path: Path, error: Exception | str) -> UserError:
  """The error for a file whose content is damaged."""
  text = error if isinstance(error, str) else first_line(error)
  return UserError(f'{path} is damaged ({text}); download or write it again.')


def _json_lines(path: Path) -> Iterator[Row]:
  for number, line in enumerate(_lines(path), start=1):
    if isinstance(line, Problem):
      yield number, line
    elif line.strip():
      yield number, _parse(line.rstrip(b'\r\n'))


def _parse(line: bytes) -> Any:
  """One line of JSON as a mapping, or the problem with it."""
  try:
    return _object(_STRICT.decode(line.decode()))
  except Problem as problem:
    return problem
  except UnicodeDecodeError as error:
    return Problem('not UTF-8', f' (byte {error.start + 1} of the line)')
  except json.JSONDecodeError as error:
    return Problem('not valid JSON', f' (column {error.colno}: {error.msg})')
  except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
    return Problem('not valid JSON', f' ({error})')


def _object(value) -> Mapping:
  if not isinstance(value, dict):
    raise Problem('not a JSON object', f' but {type(value).__name__}')
  return value


def _unique(pairs) -> dict:
  """An object whose keys are unique; of a repeated key, it is unclear which value counts."""
  value = dict(pairs)
  if len(value) < len(pairs):
    keys = [key for key, _ in pairs]
    repeated = next(key for key in value if keys.count(key) > 1)
    raise Problem('a JSON object has a key twice', f': {_shorten(repeated)}')
  return value


_STRICT = json.JSONDecoder(object_pairs_hook=_unique)


def _shorten(value: Any) -> str:
  """The representation of a value, cut to 80 characters."""
  text = ascii(value)
  return text if len(text) <= 80 else text[:80] + '...'


def _json_array(path: Path) -> Iterator[Row]:
  """Yields the elements of a JSON array, up to an error in the array itself."""
  try:
    text = b''.join(_pieces(path)).decode('utf-8-sig')
    yield from _elements(path, text)
  except UnicodeDecodeError as error:
    raise damaged_file(path, f'not UTF-8 at byte {error.start + 1}') from None
  except json.JSONDecodeError as error:
    raise damaged_file(path, f'line {error.lineno}, column {error.colno}: {error.msg}') from None
  except (ValueError, RecursionError) as error:
    raise damaged_file(path, error) from None


def _elements(path: Path, text: str) -> Iterator[Row]:
  place, number = _after_space(text, 0), 0
  mark = text[place : place + 1]
  if mark != '[':
    raise damaged_file(path, 'it does not begin with the bracket of a JSON array')
  while mark != ']':
    place = _after_space(text, place + 1)
    if mark == '[' and text[place : place + 1] == ']':
      break
    number += 1
    try:
      value, end = _STRICT.raw_decode(text, place)
      yield number, _object(value)
    except Problem as problem:
      _, end = json.JSONDecoder().raw_decode(text, place)
      yield number, problem
    place = _after_space(text, end)
    mark = text[place : place + 1]
    if mark not in (',', ']'):
      raise damaged_file(path, f'neither comma nor bracket after element {number}')
  if _after_space(text, place + 1) < len(text):
    raise damaged_file(path, 'something follows the JSON array')


def _after_space(text: str, place: int) -> int:
  while text[place : place + 1] in (' ', '\n', '\r', '\t') and place < len(text):
    place += 1
  return place


def _pieces(path: Path) -> Iterator[bytes]:
  total = 0
  for piece in _stream(path, lambda file: file.read(2**20)):
    total += len(piece)
    if total > MAX_ARRAY:
      raise UserError(
        f'{path} is a JSON array of more than {MAX_ARRAY >> 20} MiB, all of which would be in '
        'memory; write it as JSON lines.'
      )
    yield piece


def _lines(path: Path) -> Iterator[bytes | Problem]:
  """Yields lines, without a leading byte-order mark, and a problem in place of one too long."""
  long = False
  for number, line in enumerate(_stream(path, lambda file: file.readline(MAX_LINE))):
    whole = line.endswith(b'\n') or len(line) < MAX_LINE
    if long:  # this is the rest of a line
      long = not whole
    elif not whole:
      long = True
      yield Problem(f'a line is longer than {MAX_LINE >> 20} MiB')
    else:
      yield line if number else line.removeprefix(b'\xef\xbb\xbf')


def _stream(path: Path, take) -> Iterator[bytes]:
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
            raise UserError(
              f'{path} expands to more than {MAX_EXPANSION} times its size, which no text does; '
              'unpack it, and check its content.'
            )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
      raise damaged_file(path, error) from None


def _parquet(path: Path) -> Iterator[Row]:
  pyarrow = import_extra('pyarrow', 'parquet')
  parquet = import_module('pyarrow.parquet')
  try:
    with parquet.ParquetFile(path, page_checksum_verification=True) as file:
      yield from _table(path, file.schema_arrow, file.iter_batches(batch_size=CHUNK))
  except (pyarrow.ArrowException, OSError) as error:
    if isinstance(error, OSError) and error.errno:
      raise
    raise damaged_file(path, error) from None


def _arrow(path: Path) -> Iterator[Row]:
  """Yields the rows of a file that `datasets` saved: a sequence of record batches."""
  pyarrow = import_extra('pyarrow', 'parquet')
  try:
    with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as batches:
      yield from _table(path, batches.schema, batches)
  except (pyarrow.ArrowException, OSError) as error:
    if isinstance(error, OSError) and error.errno:
      raise
    raise damaged_file(path, error) from None


def _table(path, schema, batches) -> Iterator[Row]:
  if len(set(schema.names)) < len(schema.names):
    raise damaged_file(path, 'two columns have the same name')
  number = 0
  for batch in batches:
    for start in range(0, batch.num_rows, CHUNK):
      for row in _values(batch.slice(start, CHUNK)):
        number += 1
        yield number, row


def _values(batch) -> list:
  try:
    return batch.to_pylist()
  except UnicodeDecodeError:
    if batch.num_rows == 1:
      return [Problem('not UTF-8')]
    return [value for i in range(batch.num_rows) for value in _values(batch.slice(i, 1))]


KINDS = {'.jsonl': _json_lines, '.json': _json_array, '.parquet': _parquet, '.arrow': _arrow}


def read_prepared(folder: Path, split: str) -> Iterator[Row]:
  """Yields the rows of a split that TensorFlow Datasets prepared as array records.

  TensorFlow is not used.

  Raises:
    UserError: if `tensorflow_datasets` is not installed, the folder cannot be read, or it does not
      have that split.
  """
  import_extra('importlib_resources', 'tfds')
  datasets = import_extra('tensorflow_datasets', 'tfds')
  try:
    builder = datasets.builder_from_directory(folder)
    source = builder.as_data_source(split=split)
    count = len(source)
  except Exception as error:  # the files decide which code runs, and what it raises
    raise UserError(
      f"{folder}: TensorFlow Datasets cannot read the split '{split}' ({first_line(error)}); "
      "prepare it with file_format='array_record'."
    ) from None
  for index in range(count):
    try:
      value = source[index]
    except Exception as error:
      raise damaged_file(folder, error) from None
    yield index + 1, _plain_row(value)


def _plain_row(value) -> Any:
  try:
    return _plain(value)
  except UnicodeDecodeError:
    return Problem('not UTF-8')


def _plain(value) -> Any:
  """Converts NumPy arrays and bytes to numbers, lists and text."""
  if isinstance(value, Mapping):
    return {key: _plain(item) for key, item in value.items()}
  if hasattr(value, 'tolist'):
    return _plain(value.tolist())
  if isinstance(value, list):
    return [_plain(item) for item in value]
  return value.decode() if isinstance(value, bytes) else value


def import_extra(module: str, extra: str) -> Any:
  """Imports a module that only some sources need, and that the named extra installs.

  Raises:
    UserError: if it is not installed.
  """
  try:
    return import_module(module)
  except ImportError:
    raise UserError(
      f"config.data.path: this kind of data needs the package '{module}'; install it, as "
      f"`pip install 'nlhf-jax[{extra}]'`."
    ) from None
