"""A copy of the folders of a run in a store, from which the run resumes on another machine.

The run itself works on local folders; finished files are copied after each checkpoint, at the end
of each stage and when the run ends. What says that others are complete is copied last, so that the
copy can be resumed from whenever it is cut short.

Orbax does not write checkpoints to `gs://` itself, although that takes half the processor time: it
would write without the lease, the digests of a checkpoint would have to be read back, and it
refuses `s3://`. `launch/README.md` has the measurement.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nlhf_jax import distributed
from nlhf_jax.errors import Interrupted, UserError, first_line
from nlhf_jax.storage import disk, json_lines
from nlhf_jax.storage.leases import Lease

EXTRAS = {'gs': 'gcs', 's3': 's3', 'file': None}  # scheme -> the extra that it needs
FLAG = '--store'
MARK = '.store.json'  # which copy the folder and the store agree on; written last
HOLDER = '.holder'  # the name under which the folder holds leases
NOT_COPIED = ('programs',)  # compiled programs are of one kind of machine

_mirrors: list['Mirror'] = []  # those of the run of this process


@contextlib.contextmanager
def mirrored(url: str | None, workdir: Path, stages: Path) -> Iterator[None]:
  """Fetches the folders from a store, if one is given, and copies them there when the block ends.

  An error that ends the block copies nothing more: the last checkpoint is in the store already.

  Args:
    url: `gs://...`, `s3://...` or `file://...`; None leaves everything local.
    workdir: is kept at `url`.
    stages: are kept at `url/stages`.

  Raises:
    UserError: in all processes, if the store cannot be used, another run writes to it, or folder
      and store have different states of the run.
  """
  held: list[Lease] = []
  if url:
    places = {url: workdir}
    if not stages.resolve().is_relative_to(workdir.resolve()):
      places[f'{url.rstrip("/")}/stages'] = stages

    def fetch():
      held.append(take_lease(url, workdir))
      for place, folder in places.items():
        # Opened by one process: the others read what it fetched.
        left_out = () if len(places) == 1 else ('stages',)
        _mirrors.append(Mirror(folder, place, left_out, held[0].check))
        _mirrors[-1].fetch()
      return np.zeros(())

  try:
    if url:
      distributed.compute_on_first(fetch, ())
    yield
    push()
  except Interrupted:
    push()
    raise
  finally:
    _mirrors.clear()
    for lease in held:
      lease.release()


def take_lease(url: str, workdir: Path) -> Lease:
  """Takes the lease of a store, for the work directory, which this run has locked.

  Raises:
    UserError: if another run holds it, or the store cannot be used.
  """
  _check_scheme(url, FLAG)
  name = workdir / HOLDER
  if not name.exists():
    with json_lines.replace_file(name) as draft:
      draft.write_text(secrets.token_hex(8))
  try:
    with explained(url):
      lease = Lease(url, f'{name.read_text()} on {socket.gethostname()}')
      lease.take()
  except ImportError:
    raise _missing_extra(url, FLAG) from None
  return lease


def push() -> None:
  """Copies what has changed since the last copy to the store of the run, if there is one.

  Raises:
    UserError: if the store cannot be written, or another run has written to it.
  """
  for mirror in _mirrors:
    mirror.push()


class Mirror:
  """A folder and its copy in a store.

  Args:
    folder: whose files are copied.
    url: of the copy.
    left_out: names in the folder that are not copied.
    check: called before each file is written; raises `UserError` if this run may no longer write.

  Raises:
    UserError: if the URL has an unknown scheme, or its package is not installed.
  """

  def __init__(
    self,
    folder: Path,
    url: str,
    left_out: tuple[str, ...] = (),
    check: Callable[[], None] = lambda: None,
  ):
    self._folder, self._url, self._left_out = folder, url, (*NOT_COPIED, *left_out)
    self._fs, self._root = connect(url)
    self._is_folder = url.startswith('file://')  # which shows what is written of a file by now
    self._check = check
    self._copied: dict[str, tuple[int, int]] = {}  # name -> size and time of change
    self._mark: dict[str, Any] = {}
    self._lock = threading.Lock()  # checkpoints are copied by a thread of their own

  def fetch(self) -> None:
    """Fills an empty folder with the files of the store.

    A folder that agrees with the store, or was about to be copied, keeps its files.

    Raises:
      UserError: if the store cannot be read, or has another state of the run than the folder.
    """
    path = self._folder / MARK
    with explained(self._url):
      there = self._read_mark()
      self._mark = there
      here = json.loads(path.read_bytes()) if path.exists() else {}
      if not there:
        return
      if there['copy'] in (here.get('copy'), here.get('before')):
        self._copied = self._known_copies(here.get('files', {}))
        return
      if self._local() and not here.get('fetching'):
        raise UserError(
          f"'{self._folder}' and '{self._url}' hold different states of the run; delete the folder "
          'to continue from the store, or give another --workdir or --store.'
        )
      self._write_mark({'fetching': True})
      for name in self._stored():
        self._get(f'{self._root}/{name}', name)
      self._write_mark(there)
    print(f'Fetched {len(self._copied)} files of {self._url} into {self._folder}.')

  def push(self) -> None:
    """Copies files that have changed; removes from the store what this run has deleted."""
    with self._lock, explained(self._url):
      self._check()
      if self._read_mark() != self._mark:
        raise UserError(
          f"another run writes to '{self._url}'; nothing more is copied there: end one of the two, "
          'and give each run its own --store.'
        )
      files = self._local()
      changed = [name for name in files if files[name] != self._copied.get(name)]
      gone = sorted(self._copied.keys() - files.keys(), key=_order, reverse=True)
      if not changed and not gone:
        return
      mark = {'copy': secrets.token_hex(8), 'before': self._mark.get('copy')}
      self._write_mark(mark)  # first: the folder is never behind the store
      for name in sorted(changed, key=_order):
        with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
          if (self._folder / name).stat():
            self._check()
            self._put(name)
            self._copied[name] = files[name]
      for name in gone:
        with contextlib.suppress(FileNotFoundError):
          self._fs.rm_file(f'{self._root}/{name}')
        del self._copied[name]
      self._check()
      self._store_mark(mark)
      self._mark = mark
      self._write_mark(mark)

  def _put(self, name: str) -> None:
    """Copies a file to the store, where it is whole or as it was before."""
    if self._is_folder:
      with json_lines.replace_file(Path(self._root) / name) as draft:
        shutil.copyfile(self._folder / name, draft)
    else:
      self._fs.put_file(str(self._folder / name), f'{self._root}/{name}')

  def _store_mark(self, mark: Mapping[str, Any]) -> None:
    """As `_put`, of the mark."""
    text = json.dumps(mark).encode()
    if self._is_folder:
      with json_lines.replace_file(Path(self._root) / MARK) as draft:
        draft.write_bytes(text)
    else:
      self._fs.pipe_file(f'{self._root}/{MARK}', text)

  def _stored(self) -> dict[str, int]:
    """The files of the store: name -> bytes."""
    found = self._fs.find(self._root, detail=True)
    sizes = {os.path.relpath(path, self._root): info['size'] for path, info in found.items()}
    return {name: size for name, size in sizes.items() if self._is_copied(name)}

  def _known_copies(self, recorded: dict[str, list[int]]) -> dict[str, tuple[int, int]]:
    """`_copied` after a restart: the files of the store, as they were when they were copied.

    Those of which that is not known are copied again, or deleted.
    """
    known = {}
    for name, size in self._stored().items():
      entry = tuple(recorded.get(name, (-1, -1)))
      known[name] = entry if entry[0] == size else (-1, -1)
    return known

  def _local(self) -> dict[str, tuple[int, int]]:
    """The files of the folder that are copied: name -> size and time of change."""
    found = {}
    for path in self._folder.rglob('*'):
      name = path.relative_to(self._folder).as_posix()
      with contextlib.suppress(FileNotFoundError):
        if self._is_copied(name) and path.is_file():
          found[name] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found

  def _is_copied(self, name: str) -> bool:
    parts = name.split('/')
    hidden = any(part.startswith('.') or '.orbax-checkpoint-tmp' in part for part in parts)
    return not hidden and parts[0] not in self._left_out

  def _get(self, remote: str, name: str) -> None:
    path = self._folder / name
    with json_lines.replace_file(path) as draft:
      self._fs.get_file(remote, str(draft))
    self._copied[name] = (path.stat().st_size, path.stat().st_mtime_ns)

  def _read_mark(self) -> dict[str, Any]:
    try:
      return json.loads(self._fs.cat_file(f'{self._root}/{MARK}'))
    except FileNotFoundError:
      return {}

  def _write_mark(self, mark: dict[str, Any]) -> None:
    """Writes which copy the folder agrees with, and the files that the store has by now."""
    with json_lines.replace_file(self._folder / MARK) as draft:
      draft.write_text(json.dumps(mark | {'files': self._copied}))


def _order(name: str) -> tuple[int, str]:
  """Sorts what says that other files are complete after them."""
  last = name.rsplit('/', 1)[-1]
  return (2 if last == 'stage.json' else int(bool(re.match(r'manifest-\d+\.json$', last)))), name


def connect(url: str, field: str = FLAG) -> tuple[Any, str]:
  """The file system of a URL, as fsspec has it, and the path there.

  Args:
    url: of a file or folder.
    field: the flag or the field of the config that has the URL, for messages.

  Raises:
    UserError: if the URL has an unknown scheme, or its package is not installed.
  """
  scheme = _check_scheme(url, field)
  more = {'auto_mkdir': True} if scheme == 'file' else {}
  try:
    import fsspec  # late: runs without a store do not need it

    with explained(url):
      fs, root = fsspec.core.url_to_fs(
        url, use_listings_cache=False, skip_instance_cache=True, **more
      )
    return fs, root.rstrip('/')  # in a store, names with two slashes are others
  except ImportError:
    raise _missing_extra(url, field) from None


def _check_scheme(url: str, field: str) -> str:
  scheme = url.partition('://')[0]
  if '://' not in url or scheme not in EXTRAS:
    raise UserError(f"{field}='{url}' must start with gs://, s3:// or file://.")
  return scheme


def _missing_extra(url: str, field: str) -> UserError:
  extra = EXTRAS[_check_scheme(url, field)] or 'gcs'  # each has fsspec itself
  return UserError(
    f"{field}='{url}' needs the packages of the extra {extra}; install them, as with "
    f"pip install '.[{extra}]' in a checkout."
  )


@contextlib.contextmanager
def explained(url: str, field: str = 'the store') -> Iterator[None]:
  """Raises what a store refused as a `UserError`; of a package that is missing, `ImportError`."""
  try:
    yield
  except (UserError, ImportError):
    raise
  except Exception as error:  # each store has its own kinds
    if isinstance(error, OSError) and error.errno in disk.FAILED:
      raise  # of the local disk
    reason = first_line(error)
    if isinstance(error, FileNotFoundError):  # of which some stores give the path alone
      reason = f'not found: {reason}'
    raise UserError(
      f"{field} '{url}' cannot be used ({reason}); check its name, your rights and "
      'the network, and run the same command again: what was saved is safe.'
    ) from None
