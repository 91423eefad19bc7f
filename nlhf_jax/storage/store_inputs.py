"""Data and models in a store: files at `gs://...` or `s3://...`, downloaded once a machine.

They are kept in a cache, in a folder for each version of what the URL holds. A file gets its name
there when all of it has arrived, so that none is there in part.
"""

import base64
import contextlib
import fnmatch
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlhf_jax.errors import UserError
from nlhf_jax.storage import disk, json_lines, locks, store

# What stores call the version of a file; each has some of them.
VERSION = ('generation', 'md5Hash', 'ETag', 'etag', 'mtime', 'created')


def is_url(name: str) -> bool:
  """Whether a name is that of a file or folder in a store."""
  scheme, mark, _ = name.partition('://')
  return bool(mark) and scheme in store.EXTRAS


def cache_folder() -> Path:
  """Where downloads are kept: `nlhf_jax` in XDG_CACHE_HOME, which is `~/.cache` by default."""
  return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'nlhf_jax'


def download(url: str, wanted: Sequence[str], files: Sequence[str], field: str) -> Path:
  """The local copy of a file or folder in a store, downloaded unless it is there already.

  Args:
    url: of the file or folder.
    wanted: patterns of the files of a folder that determine its version.
    files: patterns of those among them that are needed now.
    field: the field of the config that has the URL, for messages.

  Raises:
    UserError: if there is no such file or folder, the store cannot be used, its package is missing,
      or a download is cut short or damaged.
  """
  fs, root = store.connect(url, field)
  with store.explained(url, field):
    found = {
      os.path.relpath(path, root): info
      for path, info in fs.find(root, detail=True).items()
      if path == root or _is_wanted(os.path.relpath(path, root), wanted)
    }
  if not found:
    raise UserError(
      f"{field}='{url}': the store has no such file, or no folder with {', '.join(wanted)}; check "
      'the name, and your rights.'
    )
  single = ''
  if '.' in found:  # a file
    root, _, single = root.rpartition('/')
    found = {single: found['.']}
  folder = cache_folder() / json_lines.json_digest([url.rstrip('/'), _versions(found)])
  needed = {name: info for name, info in found.items() if single or _is_wanted(name, files)}
  # One process of a machine downloads, and the others find its files.
  with disk.writing(folder), locks.wait_for_lock(folder.with_name(f'.{folder.name}.lock')):
    folder.mkdir(exist_ok=True)
    lacking = [name for name in needed if not _is_whole(folder / name, needed[name])]
    for name in lacking:
      _get(fs, f'{root}/{name}', folder / name, needed[name], f'{url}, {name}')
  if lacking:
    print(f"{field}: downloaded {len(lacking)} files of '{url}' to {folder}.")
  return folder / single


def _is_wanted(name: str, patterns: Sequence[str]) -> bool:
  hidden = any(part.startswith('.') for part in name.split('/'))
  return not hidden and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _is_whole(path: Path, info: Mapping[str, Any]) -> bool:
  return path.is_file() and path.stat().st_size == info['size']


def _versions(found: Mapping[str, Mapping[str, Any]]) -> list:
  """Name, size and version of each file."""
  return [
    [name, info['size'], [str(info[key]) for key in VERSION if key in info]]
    for name, info in sorted(found.items())
  ]


def _get(fs: Any, remote: str, path: Path, info: Mapping[str, Any], name: str) -> None:
  """Downloads a file, which is there afterwards, or not at all."""
  with json_lines.replace_file(path) as draft:
    with store.explained(name):
      fs.get_file(remote, str(draft))
    size = draft.stat().st_size
    if size != info['size']:
      raise UserError(
        f"'{name}': {size:,} of {info['size']:,} bytes arrived; run the same command again."
      )
    with contextlib.suppress(KeyError), draft.open('rb') as file:
      expected = base64.b64decode(info['md5Hash'])
      if hashlib.file_digest(file, 'md5').digest() != expected:
        raise UserError(f"'{name}' was damaged on its way; run the same command again.")
