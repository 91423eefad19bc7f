"""Rows of a file, whatever its kind: each a dictionary, or the problem for which there is none.

JSON lines and JSON arrays, plain or gzipped, Parquet, Arrow as `datasets` saves it, and what
TensorFlow Datasets keeps in array records. A file is read as a stream, of which a few rows are in
memory (of a JSON array, all). Nothing is unpickled. Left out: CSV, whose cells have no types.
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

LINE = 2**26  # bytes that a line may have at most
ARRAY = 2**28  # bytes that a JSON array may have at most
SWELL = 100  # times its size that a compressed file may have; text has ten
SLACK = 2**20  # bytes that it may have anyway
AT_ONCE = 64  # rows of a table in memory

Row = tuple[int, Any]  # its number, from 1, and a mapping or a `Problem`


class Problem(Exception):
  """Why one row cannot be used; `reason` is what rows with the same problem share."""

  def __init__(self, reason: str, detail: str = ''):
    super().__init__(reason + detail)
    self.reason = reason


def file_kind(path: Path) -> str:
  """The suffix that says how a file is to be read, without that of a compressed one."""
  return (path.with_suffix('') if path.suffix == '.gz' else path).suffix


def read_rows(path: Path) -> Iterator[Row]:
  """The rows of a file, by what its name ends with: one of `KINDS`.

  A row is a dictionary, or the `Problem` for which it cannot be one.

  Raises:
    UserError: if the file cannot be read, or from some place on cannot be.
  """
  if file_kind(path) not in KINDS:
    raise UserError(
      f"config.data.path: '{path}' is of no kind that can be read; give {', '.join(KINDS)}, those "
      'of JSON also with .gz.'
    )
  with checked_file(path):
    yield from KINDS[file_kind(path)](path)


@contextlib.contextmanager
def checked_file(path: Path) -> Iterator[None]:
  """Within it, a file that cannot be read, or is none but a pipe or a device, is a `UserError`."""
  with checked_path(path):
    if not stat.S_ISREG(path.stat().st_mode):
      raise OSError(errno.EINVAL, 'it is not a file')
    yield


@contextlib.contextmanager
def checked_path(path: Path) -> Iterator[None]:
  """Within it, whatever the system has against a path is a `UserError`."""
  try:
    yield
  except OSError as error:
    reason = error.strerror or first_line(error)
    raise UserError(
      f"config.data.path: cannot read '{path}': {reason}; give a file, a folder of files, or the "
      'name of a dataset on the hub.'
    ) from None


def row_noun(path: Path) -> str:
  """What one of the rows of a file is called."""
  return 'line' if file_kind(path) == '.jsonl' else 'row'


def damaged_file(path: Path, error: Exception | str) -> UserError:
  """The sentence for a file that is not what it should be."""
  text = error if isinstance(error, str) else first_line(error)
  return UserError(f'{path} is damaged ({text}); download or write it again.')


def _json_lines(path: Path) -> Iterator[Row]:
  for number, line in enumerate(_lines(path), start=1):
    if isinstance(line, Problem):
      yield number, line
    elif line.strip():
      yield number, _parsed(line.rstrip(b'\r\n'))


def _parsed(line: bytes) -> Any:
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
  """An object, in which no key may come twice: which of the two values counts, nobody can say."""
  value = dict(pairs)
  if len(value) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in value if keys.count(key) > 1)
    raise Problem('a JSON object has a key twice', f': {_short(twice)}')
  return value


_STRICT = json.JSONDecoder(object_pairs_hook=_unique)


def _short(value: Any) -> str:
  """A value as Python writes it, cut where it gets long."""
  text = ascii(value)
  return text if len(text) <= 80 else text[:80] + '...'


def _json_array(path: Path) -> Iterator[Row]:
  """The elements of a JSON array, up to an error in the array itself."""
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
    if total > ARRAY:
      raise UserError(
        f'{path} is a JSON array of more than {ARRAY >> 20} MiB, all of which would be in memory; '
        'write it as JSON lines.'
      )
    yield piece


def _lines(path: Path) -> Iterator[bytes | Problem]:
  """Lines without a byte-order mark before the first; a problem in place of one too long."""
  long = False
  for number, line in enumerate(_stream(path, lambda file: file.readline(LINE))):
    whole = line.endswith(b'\n') or len(line) < LINE
    if long:  # this is the rest of a line
      long = not whole
    elif not whole:
      long = True
      yield Problem(f'a line is longer than {LINE >> 20} MiB')
    else:
      yield line if number else line.removeprefix(b'\xef\xbb\xbf')


def _stream(path: Path, take) -> Iterator[bytes]:
  """What `take(file)` gives, time after time, up to the end of the file, uncompressed.

  Raises:
    UserError: if it is compressed and cut short or damaged, or grows out of all proportion.
  """
  with path.open('rb') as raw:
    packed = raw.peek(2)[:2] == b'\x1f\x8b'
    if path.suffix == '.gz' and not packed and raw.peek(1):
      raise damaged_file(path, 'it is not compressed by gzip')
    file = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if packed else raw
    total, most = 0, SLACK
    try:
      while piece := take(file):
        yield piece
        total += len(piece)
        if packed and total > most:
          most = SWELL * raw.tell() + SLACK
          if total > most:
            raise UserError(
              f'{path} grows to more than {SWELL} times its size, which no text does; unpack it, '
              'and see what it is.'
            )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
      raise damaged_file(path, error) from None


def _parquet(path: Path) -> Iterator[Row]:
  pyarrow = import_extra('pyarrow', 'parquet')
  parquet = import_module('pyarrow.parquet')
  try:
    with parquet.ParquetFile(path, page_checksum_verification=True) as file:
      yield from _table(path, file.schema_arrow, file.iter_batches(batch_size=AT_ONCE))
  except (pyarrow.ArrowException, OSError) as error:
    if isinstance(error, OSError) and error.errno:
      raise
    raise damaged_file(path, error) from None


def _arrow(path: Path) -> Iterator[Row]:
  """A file that `datasets` saved: record batches one after the other."""
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
    for start in range(0, batch.num_rows, AT_ONCE):
      for row in _values(batch.slice(start, AT_ONCE)):
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
  """The rows of a split that TensorFlow Datasets prepared as array records; TensorFlow is not used.

  Raises:
    UserError: if `tensorflow_datasets` is not installed, the folder cannot be read, or it has not
      got that split.
  """
  import_extra('importlib_resources', 'tfds')
  datasets = import_extra('tensorflow_datasets', 'tfds')
  try:
    builder = datasets.builder_from_directory(folder)
    source = builder.as_data_source(split=split)
    count = len(source)
  except Exception as error:  # whatever the code behind it trips over
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
  """NumPy and bytes as numbers, lists and text."""
  if isinstance(value, Mapping):
    return {key: _plain(item) for key, item in value.items()}
  if hasattr(value, 'tolist'):
    return _plain(value.tolist())
  if isinstance(value, list):
    return [_plain(item) for item in value]
  return value.decode() if isinstance(value, bytes) else value


def import_extra(module: str, extra: str) -> Any:
  """A module that only some sources need.

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
