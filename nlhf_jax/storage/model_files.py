"""Digests of the files of models, computed once, and the bytes of models that this process read."""

import contextlib
import hashlib
import time
from pathlib import Path

from nlhf_jax.storage import json_lines

FILE = '.model-digests.json'
YOUNG = 2.0  # seconds since the last change; in less a file may change again at the same time

_kept: list[Path] = []  # the folder in which digests are kept, if there is one
_known: dict[str, list] = {}  # path -> `_state` and digest
_read = [0]


def keep_digests(folder: Path) -> None:
  """Keeps digests in a folder from now on, so that the next run need not read the files again."""
  _kept[:] = [folder]
  with contextlib.suppress(OSError):
    _known.update(json_lines.from_sealed_text((folder / FILE).read_bytes()) or {})


def sha256(path: Path) -> bytes:
  """The digest of a file. It is computed again only if size, times or place of the file change."""
  path = path.resolve()
  before = _state(path)
  known = _known.get(str(path))
  if known and known[:-1] == before:
    return bytes.fromhex(known[-1])
  with path.open('rb') as file:
    digest = hashlib.file_digest(file, 'sha256')
  count_read(path.stat().st_size)
  if _state(path) == before and time.time() - max(before[1:3]) / 1e9 > YOUNG:
    _known[str(path)] = [*before, digest.hexdigest()]
    for folder in _kept:
      with contextlib.suppress(OSError), json_lines.replace_file(folder / FILE) as draft:
        draft.write_text(json_lines.to_sealed_text(_known))
  return digest.digest()


def _state(path: Path) -> list[int]:
  """Size in bytes, times of change in nanoseconds, and number on the disk."""
  status = path.stat()
  return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def count_read(count: int) -> None:
  """Adds to the bytes of models that this process has read."""
  _read[0] += count


def bytes_read() -> int:
  """The bytes of models that this process has read: digests, and its parts of the weights."""
  return _read[0]
