"""JSON and JSON lines, written so that a killed process leaves each file complete or unchanged.

Files that a run reads again have a checksum: each of their lines, or the file as a whole. What was
damaged since it was written is found, set aside as NAME.damaged beside the file, and reported.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nlhf_jax import distributed
from nlhf_jax.storage import disk

CHECK = 'crc32'  # the last field of a value with a checksum, which is that of all other fields


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
  """Yields a draft to write to, which replaces `path` when the block ends without an error.

  The draft is on the disk before it replaces the file, so that a power cut leaves one of the two.
  Of several processes, only the first one's draft is kept; all continue together.

  Raises:
    UserError: if the disk refuses the file.
  """
  with distributed.first_process_only(str(path)) as mine:
    if mine:
      with disk.writing(path), replace_file(path) as draft:
        yield draft
    else:
      with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / path.name


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
  """As `atomic_write`, of this process alone, and with the disk's own errors."""
  path.parent.mkdir(parents=True, exist_ok=True)
  draft = path.with_name(f'.{path.name}.draft')
  try:
    yield draft
    with draft.open('rb') as written:
      os.fsync(written.fileno())
    os.replace(draft, path)
  finally:
    with contextlib.suppress(OSError):
      draft.unlink()


def exists(path: Path) -> bool:
  """Whether the file exists; the same answer in every process."""
  return distributed.broadcast_from_first(path.exists())


# --- Records, one a line ---


def read(path: Path) -> list[dict]:
  """The records of a file, or none without a file; an incomplete last line is dropped.

  If lines are damaged, the file is set aside and replaced by one with all others.
  """
  if not path.exists():
    return []
  *lines, rest = path.read_bytes().split(b'\n')
  if rest and not rest.startswith(b'{'):  # no line that was cut
    lines.append(rest)
  found = [_parse(line) for line in lines]
  sealed = any(CHECK in record for record in found if record)
  if sealed:  # then every line was
    found = [_unseal(record) for record in found]
  records = [record for record in found if record is not None]
  if len(records) < len(lines):
    problem = f'{len(lines) - len(records)} of {len(lines)} lines are damaged'
    replace_damaged(path, records, problem, sealed)
  return records


def read_valid(path: Path, is_valid: Callable[[Mapping], bool], problem: str) -> list[dict]:
  """The records of a file that are valid; none without a file.

  If some are not, the file is set aside, and replaced by one with the others. All processes get the
  same records: none appends to the file before all have read it.

  Args:
    path: of a file whose records have checksums.
    is_valid: whether a record can be used.
    problem: with the others, for the sentence: `2 of 5` is put before it.
  """
  records = distributed.value_from_first(lambda: read(path))
  valid = [record for record in records if is_valid(record)]
  if len(valid) < len(records):
    replace_damaged(path, valid, f'{len(records) - len(valid)} of {len(records)} {problem}')
  return valid


def replace_damaged(
  path: Path, records: Iterable[Mapping], problem: str, sealed: bool = True
) -> None:
  """Sets a file aside, if it is there, writes the records that can be used, and prints it.

  Of several processes the first one does it, and the others do not wait.

  Args:
    path: of the file.
    records: the good ones.
    problem: what is wrong, for the sentence.
    sealed: whether the records get checksums.
  """
  if distributed.is_first():
    kept = ''
    with disk.writing(path):
      if path.exists():
        aside = _aside(path)
        shutil.copyfile(path, aside)
        kept = f', and the file is kept as {aside.name}'
      with replace_file(path) as draft:
        draft.write_text(_lines(records, sealed))
    print(f'{path}: {problem}; the others are used{kept}.', flush=True)


def write(path: Path, records: Iterable[Mapping], sealed: bool = False) -> None:
  """Writes records to a file, one a line; with checksums if it is `sealed`."""
  with atomic_write(path) as draft:
    draft.write_text(_lines(records, sealed))


def append(path: Path, records: Iterable[Mapping]) -> None:
  """Appends records with checksums to a file, which is created if need be.

  An incomplete last line is dropped. Of several processes the first one writes, and the others do
  not wait.
  """
  if not distributed.is_first():
    return
  text = _lines(records, sealed=True)
  with disk.writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not _takes_more(path):
      known = _lines(read(path), sealed=True)
      with replace_file(path) as draft:
        draft.write_text(known)
    with path.open('a') as lines:
      lines.write(text)


def _takes_more(path) -> bool:
  """Whether the file is empty, or all of its lines are complete and have checksums."""
  with path.open('rb') as file:
    first = file.readline()
    if not first:
      return True
    file.seek(-1, os.SEEK_END)
    return file.read() == b'\n' and CHECK in (_parse(first) or ())


def _lines(records, sealed) -> str:
  return ''.join(json.dumps(_seal(record) if sealed else record) + '\n' for record in records)


def _parse(text) -> dict | None:
  """The JSON object of a text, or None if it is none."""
  try:
    value = json.loads(text)
  except (ValueError, RecursionError):
    return None
  return value if isinstance(value, dict) else None


def to_sealed_text(value: Mapping) -> str:
  """The text of a value with a checksum, for `from_sealed_text`."""
  return _lines([value], sealed=True)


def from_sealed_text(text: str | bytes) -> dict | None:
  """The value of such a text; None if it is damaged."""
  return _unseal(_parse(text))


def _seal(value) -> dict:
  return {**value, CHECK: f'{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}'}


def _unseal(value) -> dict | None:
  """A value without its checksum; None if it is damaged."""
  inner = {name: item for name, item in (value or {}).items() if name != CHECK}
  return inner if value and value.get(CHECK) == _seal(inner)[CHECK] else None


# --- One value ---


def write_json(path: Path, value: Mapping) -> None:
  """Writes one indented value, as `to_json` converts it."""
  with atomic_write(path) as draft:
    draft.write_text(json.dumps(to_json(value), indent=2, allow_nan=False) + '\n')


def write_sealed(path: Path, value: Mapping) -> None:
  """Writes one value with a checksum, for `read_sealed`; it may have non-finite numbers."""
  with atomic_write(path) as draft:
    draft.write_text(to_sealed_text(value))


def read_json(path: Path) -> Any:
  """Reads the value of a file, as `write_json` wrote it.

  Raises:
    ValueError: if it is damaged.
  """
  return json.loads(path.read_text())


def read_sealed(path: Path) -> dict | None:
  """The value that `write_sealed` wrote; None without a file.

  A damaged file is set aside, which is printed, as if there were none. Every process gets what the
  first one reads.
  """

  def read_here():
    value = None
    with contextlib.suppress(FileNotFoundError):
      value = from_sealed_text(path.read_bytes())
      if value is None:
        set_aside(path, 'is made again')
    return value

  return distributed.value_from_first(read_here)


def set_aside(path: Path, consequence: str) -> None:
  """Renames a damaged file or folder to NAME.damaged, and prints it.

  Of the processes that see it, the first one does it.

  Args:
    path: of the file or folder.
    consequence: what happens to its content, for the sentence.
  """
  if distributed.is_first_here():
    aside = _aside(path)
    with disk.writing(path):
      os.replace(path, aside)
    print(f'{path} is damaged and {consequence}; it is kept as {aside.name}.', flush=True)


def _aside(path) -> Path:
  """The first of NAME.damaged, NAME.damaged2, ... that is not taken."""
  names = itertools.chain([''], itertools.count(2))
  places = (path.with_name(f'{path.name}.damaged{number}') for number in names)
  return next(place for place in places if not place.exists())


def to_json(value: Any) -> Any:
  """Converts a value to what JSON can hold: arrays to lists, and non-finite numbers to null."""
  if isinstance(value, Mapping):
    return {str(key): to_json(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [to_json(item) for item in value]
  if hasattr(value, 'tolist'):
    return to_json(value.tolist())
  return None if isinstance(value, float) and not math.isfinite(value) else value


def json_digest(value: Any) -> str:
  """A digest of a JSON value, ten hexadecimal digits."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]
