"""Reads rows from JSON in any layout, whatever the name of the file, plain or gzipped.

The layouts are one object a line, as `Dataset.to_json` writes; an array of objects; objects one
after the other, each over several lines; and a single object that has the rows in one of its
fields, as `{"data": [...]}`. All but the first are in memory as a whole.
"""

import json
from collections.abc import Collection, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from nlhf_jax.data.readers import Problem, Row, damaged_file, file_kind, stream
from nlhf_jax.errors import UserError

MAX_LINE = 2**26  # bytes
MAX_TEXT = 2**28  # bytes of a layout that is in memory as a whole

Layout = Literal['lines', 'array', 'objects']


def json_rows(path: Path, fields: Collection[str]) -> Iterator[Row]:
  """Yields the rows of a file.

  Args:
    path: the file.
    fields: those of a row; a single object that has none of them may have the rows in a field.

  Raises:
    UserError: if the file cannot be read to its end, or has several lists of rows.
  """
  found = layout(path)
  if found == 'lines':
    yield from _json_lines(path)
    return
  try:
    text = b''.join(_pieces(path)).decode('utf-8-sig')
    if found == 'array':
      yield from _array(path, text)
    else:
      yield from _objects(path, text, fields)
  except UnicodeDecodeError as error:
    raise damaged_file(path, f'not UTF-8 at byte {error.start + 1}') from None
  except json.JSONDecodeError as error:
    raise damaged_file(path, f'line {error.lineno}, column {error.colno}: {error.msg}') from None
  except (ValueError, RecursionError) as error:
    raise damaged_file(path, error) from None


def layout(path: Path) -> Layout:
  """How the rows of a file are laid out, by its first two lines that are not blank.

  Raises:
    UserError: if a compressed file is damaged.
  """
  lines = (line for line in _lines(path) if isinstance(line, Problem) or line.strip())
  first, second = next(lines, b''), next(lines, None)
  if isinstance(first, bytes) and first.lstrip().startswith(b'['):
    return 'array'
  whole = isinstance(first, bytes) and isinstance(_parse(first), Mapping)
  if whole and second is not None:
    return 'lines'
  starts = isinstance(first, bytes) and first.strip() == b'{'  # an object over several lines
  return 'objects' if whole or starts or file_kind(path) == '.json' else 'lines'


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
_PLAIN = json.JSONDecoder()


def _shorten(value: Any) -> str:
  """The representation of a value, cut to 80 characters."""
  text = ascii(value)
  return text if len(text) <= 80 else text[:80] + '...'


def _array(path: Path, text: str) -> Iterator[Row]:
  """Yields the elements of a JSON array, up to an error in the array itself."""
  end = yield from _elements(path, text, _after_space(text, 0))
  if _after_space(text, end) < len(text):
    raise damaged_file(path, 'something follows the JSON array')


def _elements(path: Path, text: str, place: int) -> Generator[Row, None, int]:
  """Yields the elements of the array that begins at a place; returns the place after it."""
  number, mark = 0, text[place]
  while mark != ']':
    place = _after_space(text, place + 1)
    if mark == '[' and text[place : place + 1] == ']':
      break
    number += 1
    row, place = _element(text, place)
    yield number, row
    place = _after_space(text, place)
    mark = text[place : place + 1]
    if mark not in (',', ']'):
      raise damaged_file(path, f'neither comma nor bracket after element {number}')
  return place + 1


def _element(text: str, place: int) -> tuple[Any, int]:
  """The row that begins at a place, or its problem, and the place after it."""
  try:
    value, end = _STRICT.raw_decode(text, place)
    return _object(value), end
  except Problem as problem:
    return problem, _PLAIN.raw_decode(text, place)[1]


def _objects(path: Path, text: str, fields: Collection[str]) -> Iterator[Row]:
  """Yields objects one after the other or, of a single one that is no row, the rows in it."""
  start = _after_space(text, 0)
  row, place = _element(text, start) if start < len(text) else (None, start)
  place = _after_space(text, place)
  alone = place == len(text) and isinstance(row, Mapping)
  if alone and _has_columns(row):
    raise UserError(
      f'{path} has a JSON object of columns, not of rows; write one row a line (with pandas, '
      "to_json(..., orient='records', lines=True))."
    )
  if alone and not any(name in row for name in fields):
    lists = [key for key, value in row.items() if _is_list_of_objects(value)]
    if len(lists) > 1:
      names = ', '.join(map(_shorten, lists))
      raise UserError(f'{path} has several lists of rows: {names}; write the one to read alone.')
    if lists:
      yield from _elements(path, text, _find_value(text, start, lists[0]))
      return
  number = 0
  while row is not None:
    number += 1
    yield number, row
    row, end = _element(text, place) if place < len(text) else (None, place)
    place = _after_space(text, end)


def _has_columns(value: Mapping) -> bool:
  """Whether an object has only columns: lists of what is no message, or as pandas writes them."""
  lists = [isinstance(column, list) and column for column in value.values()]
  if all(lists):
    return bool(lists) and not any(isinstance(one, dict) for column in lists for one in column)
  return all(isinstance(column, dict) and '0' in column for column in value.values())


def _is_list_of_objects(value: Any) -> bool:
  return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _find_value(text: str, place: int, wanted: str) -> int:
  """Where the value of a key begins, in the object that begins at a place."""
  key = None
  while key != wanted:
    key, colon = _PLAIN.raw_decode(text, _after_space(text, place + 1))
    start = _after_space(text, _after_space(text, colon) + 1)
    place = _after_space(text, _PLAIN.raw_decode(text, start)[1])
  return start


def _after_space(text: str, place: int) -> int:
  while text[place : place + 1] in (' ', '\n', '\r', '\t') and place < len(text):
    place += 1
  return place


def _pieces(path: Path) -> Iterator[bytes]:
  total = 0
  for piece in stream(path, lambda file: file.read(2**20)):
    total += len(piece)
    if total > MAX_TEXT:
      raise UserError(
        f'{path} is JSON of more than {MAX_TEXT >> 20} MiB that is not one object a line, all of '
        'which would be in memory; write it as JSON lines.'
      )
    yield piece


def _lines(path: Path) -> Iterator[bytes | Problem]:
  """Yields lines, without a leading byte-order mark, and a problem in place of one too long."""
  long = False
  for number, line in enumerate(stream(path, lambda file: file.readline(MAX_LINE))):
    whole = line.endswith(b'\n') or len(line) < MAX_LINE
    if long:  # this is the rest of a line
      long = not whole
    elif not whole:
      long = True
      yield Problem(f'a line is longer than {MAX_LINE >> 20} MiB')
    else:
      yield line if number else line.removeprefix(b'\xef\xbb\xbf')
