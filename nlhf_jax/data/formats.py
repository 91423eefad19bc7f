"""Finds the reader of a data file by the file's content: names are often wrong."""

import gzip
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from nlhf_jax.data import json_rows, table_rows
from nlhf_jax.data.readers import SUFFIXES, Row, checked_file, file_kind
from nlhf_jax.errors import UserError

Reader = Callable[[Path, Collection[str]], Iterator[Row]]

TABLES: dict[bytes, Reader] = {
  b'PAR1': table_rows.parquet_rows,
  b'ARROW1': table_rows.arrow_rows,
  b'\xff\xff\xff\xff': table_rows.arrow_rows,
}
BY_NAME: dict[str, Reader] = {'.parquet': table_rows.parquet_rows, '.arrow': table_rows.arrow_rows}
# How files begin that hold no rows that could be read -> what they are, and the remedy.
FOREIGN = {
  b'version https://git-lfs': ('a pointer of Git LFS', 'fetch its content with `git lfs pull`'),
  b'<': ('a web page or XML', 'download the file itself'),
  b'PK\x03\x04': ('a zip archive', 'unpack it'),
  b'BZh': ('compressed by bzip2', 'unpack it'),
  b'\xfd7zXZ\0': ('compressed by xz', 'unpack it'),
  b'\x28\xb5\x2f\xfd': ('compressed by zstd', 'unpack it'),
  b'\x1f\x8b': ('compressed by gzip twice', 'unpack it'),
  b'\x80': ('a pickle, which could run code', 'write it as JSON lines'),
  b'SQLite format 3': ('an SQLite database', 'write its table as JSON lines'),
  b'FEA1': ('Feather of version 1', 'write it as version 2'),
  b'ORC': ('an ORC table', 'write it as Parquet'),
  b'Obj\x01': ('an Avro table', 'write it as Parquet'),
  b'\xff\xfe': ('UTF-16', 'convert it to UTF-8'),
  b'\xfe\xff': ('UTF-16', 'convert it to UTF-8'),
}


def read_rows(path: Path, fields: Collection[str]) -> Iterator[Row]:
  """Yields the rows of a file whose name ends with one of `SUFFIXES`.

  Args:
    path: the file.
    fields: those of a row that are used.

  Raises:
    UserError: if the file cannot be read, or not to its end.
  """
  if file_kind(path) not in SUFFIXES:
    raise UserError(
      f"config.data.path: '{path}' has no suffix that can be read; give {', '.join(SUFFIXES)}, "
      'those of JSON also with .gz.'
    )
  with checked_file(path):
    yield from _find_reader(path)(path, fields)


def _find_reader(path: Path) -> Reader:
  start, packed = _start(path)
  for magic, reader in TABLES.items():
    if start.startswith(magic):
      if packed:
        raise UserError(f'{path} is a table compressed by gzip; unpack it.')
      return reader
  for magic, (what, remedy) in FOREIGN.items():
    if start.startswith(magic):
      raise UserError(f'{path} is {what}; {remedy}.')
  start, kind = start.lstrip(b' \t\r\n'), file_kind(path)
  if start.startswith((b'{', b'[')):
    return json_rows.json_rows
  if start and kind == '.json':
    raise UserError(
      f'{path} is not JSON: it begins with {ascii(start[:20])[1:]}; write one JSON object a line.'
    )
  return BY_NAME.get(kind, json_rows.json_rows)


def _start(path: Path) -> tuple[bytes, bool]:
  """The first bytes of a file, unpacked, and whether it is compressed by gzip."""
  with path.open('rb') as file:
    start = file.read(2**10)
    packed = start.startswith(b'\x1f\x8b')
    if packed:
      file.seek(0)
      try:
        start = gzip.GzipFile(fileobj=file).read(2**10)
      except (EOFError, zlib.error, gzip.BadGzipFile):
        start = b''  # the reader says what is damaged
  return start.removeprefix(b'\xef\xbb\xbf'), packed


def row_noun(path: Path) -> str:
  """The noun for a row of a file in messages."""
  if _find_reader(path) is not json_rows.json_rows:
    return 'row'
  by_line = ('lines', 'objects') if file_kind(path) == '.jsonl' else ('lines',)
  return 'line' if json_rows.layout(path) in by_line else 'row'
