"""The files of published benchmarks: JSON lists and JSON lines, gzipped or not.

A run's own files are in `json_lines`. These files come from elsewhere, so errors name the row that
cannot be used.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from nlhf_jax.errors import UserError
from nlhf_jax.storage import json_lines


def read(path: str | Path) -> list[dict]:
  """The rows of a file, which is a JSON list of objects, or has one object per line.

  Raises:
    UserError: if the file cannot be read, is neither, or has no rows.
  """
  text = _text(path)
  rows = _parse_list(path, text) if text.lstrip().startswith('[') else _parse_lines(path, text)
  for number, row in enumerate(rows, start=1):
    if not isinstance(row, dict):
      raise UserError(f'{path}, row {number}: not a JSON object but {type(row).__name__}.')
  if not rows:
    raise UserError(f'{path} has no rows; give a file with at least one.')
  return rows


def _text(path) -> str:
  try:
    content = Path(path).read_bytes()
    if content[:2] == b'\x1f\x8b':  # gzip, whatever the name
      content = gzip.decompress(content)
    return content.removeprefix(codecs.BOM_UTF8).decode()
  except UnicodeDecodeError as error:
    raise UserError(f'{path} is not UTF-8 (byte {error.start + 1}); convert it.') from None
  except (EOFError, zlib.error, gzip.BadGzipFile):
    raise UserError(f'{path} is a gzip file cut short or damaged; download it again.') from None
  except OSError as error:
    raise UserError(f"cannot read '{path}': {error.strerror}; give another path.") from None


def _parse_list(path, text) -> list:
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(f'{path} is no JSON list ({error}); correct it.') from None


def _parse_lines(path, text) -> list:
  rows = []
  for number, line in enumerate(text.split('\n'), start=1):
    if line.strip():
      try:
        rows.append(json.loads(line))
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
  # A response of a model may hold half of a surrogate pair, which UTF-8 cannot encode.
  content = text.encode(errors='replace')
  with json_lines.atomic_write(Path(path)) as draft:
    packed = gzip.compress(content, mtime=0) if Path(path).suffix == '.gz' else content
    draft.write_bytes(packed)


def field(path: str | Path, number: int, row: Mapping, name: str, kind: type | tuple) -> object:
  """The field `name` of a row, whose number from 1 goes into messages.

  Raises:
    UserError: if the field is missing, or is not of type `kind`.
  """
  if name not in row:
    raise UserError(f"{path}, row {number}: field '{name}' is missing; it has {sorted(row)}.")
  if not isinstance(row[name], kind) or isinstance(row[name], bool):
    raise UserError(
      f"{path}, row {number}: field '{name}' is {row[name]!r:.80}; it must be {_kinds(kind)}."
    )
  return row[name]


def _kinds(kind) -> str:
  names = {str: 'text', int: 'a whole number', float: 'a number', list: 'a list', dict: 'an object'}
  kinds = kind if isinstance(kind, tuple) else (kind,)
  return ' or '.join(dict.fromkeys(names.get(one, 'null') for one in kinds))
