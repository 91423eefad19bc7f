"""The files of published benchmarks: JSON lists and JSON lines, gzipped or not.

A run's own files are in `json_lines`. These files come from elsewhere, so errors name the row that
cannot be used, and texts are cleaned (`texts.clean_text`).
"""

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from nlhf_jax.errors import UserError
from nlhf_jax.storage import json_lines
from nlhf_jax.storage.texts import clean_text

MAX_BYTES = 1 << 28  # of a file, unpacked; a few bytes of gzip can hold as many
WRAPPERS = ('data', 'rows', 'examples')  # keys under which some programs write their rows
MAGIC = {b'PK': 'a ZIP archive', b'PAR1': 'a Parquet file', b'ARROW1': 'an Arrow file'}
# Escapes of characters that `clean_text` replaces.
UNCLEAN = re.compile(r'\\u(?:[dD][89a-fA-F]|0000)')


def read(path: str | Path) -> list[dict]:
  """The rows of a file, which is a JSON list of objects, or has one object per line.

  A list may stand under one of the keys `WRAPPERS`.

  Raises:
    UserError: if the file cannot be read, is neither, or has no rows.
  """
  text = _text(path)
  rows = _parse_list(path, text) if text.lstrip().startswith('[') else _parse_objects(path, text)
  if UNCLEAN.search(text):
    rows = _clean(path, rows)
  for number, row in enumerate(rows, start=1):
    if not isinstance(row, dict):
      raise UserError(f'{path}, row {number}: not a JSON object but {type(row).__name__}.')
  if not rows:
    raise UserError(f'{path} has no rows; give a file with at least one.')
  return rows


def _text(path) -> str:
  try:
    with Path(path).open('rb') as file:
      content = file.read(MAX_BYTES + 1)
    if content[:2] == b'\x1f\x8b':  # gzip, whatever the name
      with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
      raise UserError(f'{path} has more than {MAX_BYTES >> 20} MiB of text; split it.')
    for magic, kind in MAGIC.items():
      if content.startswith(magic):
        raise UserError(f'{path} is {kind}; give a JSON list or JSON lines.')
    return content.removeprefix(codecs.BOM_UTF8).decode()
  except UnicodeDecodeError as error:
    raise UserError(f'{path} is not UTF-8 (byte {error.start + 1}); convert it.') from None
  except (EOFError, zlib.error, gzip.BadGzipFile):
    raise UserError(f'{path} is a gzip file cut short or damaged; download it again.') from None
  except OSError as error:
    raise UserError(f"cannot read '{path}': {error.strerror}; give another path.") from None


def _parse_list(path, text) -> list:
  try:
    return _loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(f'{path} is no JSON list ({error}); correct it.') from None


def _parse_objects(path, text) -> list:
  """The rows of JSON lines, or of one object that may hold them under a key."""
  try:
    value = _loads(text)
  except (ValueError, RecursionError):
    return _parse_lines(path, text)
  held = [value[key] for key in WRAPPERS if isinstance(value, dict) and key in value]
  return held[0] if len(held) == 1 and isinstance(held[0], list) else [value]


def _loads(text):
  """The value of a text; a key that occurs twice is an error, not the last of its values."""

  def make_object(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
      names = [name for name, _ in pairs]
      twice = next(name for name in names if names.count(name) > 1)
      raise ValueError(f'the key {twice!r:.60} occurs twice in an object')
    return found

  return json.loads(text, object_pairs_hook=make_object)


def _clean(path, rows) -> list:
  def clean(value):
    if isinstance(value, str):
      return clean_text(value)
    if isinstance(value, list):
      return [clean(item) for item in value]
    if isinstance(value, dict):
      return {clean_text(key): clean(item) for key, item in value.items()}
    return value

  try:
    return clean(rows)
  except RecursionError:
    raise UserError(f'{path} has a value that is nested too deeply; correct it.') from None


def _parse_lines(path, text) -> list:
  rows = []
  for number, line in enumerate(text.split('\n'), start=1):
    if line.strip():
      try:
        rows.append(_loads(line))
      except (ValueError, RecursionError) as error:
        raise UserError(f'{path}, line {number}: not valid JSON ({error}); correct it.') from None
  return rows


def write_list(path: str | Path, rows: Iterable[Mapping]) -> None:
  """Writes rows as one indented JSON list; gzipped if the name ends in `.gz`."""
  _write(path, json.dumps(json_lines.to_json(list(rows)), indent=2, ensure_ascii=False) + '\n')


def write_lines(path: str | Path, rows: Iterable[Mapping]) -> None:
  """Writes a row a line; gzipped if the name ends in `.gz`."""
  lines = [json.dumps(json_lines.to_json(row), ensure_ascii=False) + '\n' for row in rows]
  _write(path, ''.join(lines))


def _write(path, text) -> None:
  content = clean_text(text).encode()
  with json_lines.atomic_write(Path(path)) as draft:
    packed = gzip.compress(content, mtime=0) if Path(path).suffix == '.gz' else content
    draft.write_bytes(packed)


def field(path: str | Path, number: int, row: Mapping, name: str, kind: type | tuple) -> object:
  """The field `name` of a row, whose number from 1 goes into messages.

  Raises:
    UserError: if the field is missing, or is not of type `kind`.
  """
  if name not in row:
    fields = str(sorted(row))[:400]
    raise UserError(f"{path}, row {number}: field '{name}' is missing; it has {fields}.")
  if not isinstance(row[name], kind) or isinstance(row[name], bool):
    raise UserError(
      f"{path}, row {number}: field '{name}' is {row[name]!r:.80}; it must be {_kinds(kind)}."
    )
  return row[name]


def _kinds(kind) -> str:
  names = {str: 'text', int: 'a whole number', float: 'a number', list: 'a list', dict: 'an object'}
  kinds = kind if isinstance(kind, tuple) else (kind,)
  return ' or '.join(dict.fromkeys(names.get(one, 'null') for one in kinds))
