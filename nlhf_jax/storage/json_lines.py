"""JSON and JSON lines, written so that a killed process leaves each file complete or unchanged."""

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nlhf_jax import distributed


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
  """Yields a draft to write to, which replaces `path` when the block ends without an error.

  Of several processes, only the first one's draft is kept; all continue together.
  """
  with distributed.first_process_only(str(path)) as mine:
    if mine:
      path.parent.mkdir(parents=True, exist_ok=True)
      draft = path.with_name(f'.{path.name}.draft')
      yield draft
      os.replace(draft, path)
    else:
      with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / path.name


def exists(path: Path) -> bool:
  """Whether the file exists; the same answer in every process."""
  return distributed.broadcast_from_first(path.exists())


def read(path: Path) -> list[dict]:
  """The records of a file, or none without a file; an incomplete last line is dropped."""
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().split('\n')[:-1]]


def write(path: Path, records: Iterable[Mapping]) -> None:
  """Writes records to a file, one a line."""
  with atomic_write(path) as draft:
    draft.write_text(''.join(json.dumps(record) + '\n' for record in records))


def append(path: Path, records: Iterable[Mapping]) -> None:
  """Appends records to a file, which is created if need be; an incomplete last line is dropped.

  For a run of one process.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('ab+') as file:
    if file.tell():
      file.seek(-1, os.SEEK_END)
      if file.read() != b'\n':
        write(path, read(path))
  with path.open('a') as lines:
    lines.writelines(json.dumps(record) + '\n' for record in records)


def write_json(path: Path, value: Mapping) -> None:
  """Writes one indented value, as `to_json` converts it."""
  with atomic_write(path) as draft:
    draft.write_text(json.dumps(to_json(value), indent=2, allow_nan=False) + '\n')


def read_json(path: Path) -> dict:
  """Reads the value of a file."""
  return json.loads(path.read_text())


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
