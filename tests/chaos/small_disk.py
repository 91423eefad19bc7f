"""A disk of a given size, which really becomes full: a tmpfs, which only root can mount."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


def can_mount() -> bool:
  """Whether a test may mount a small disk."""
  return sys.platform == 'linux' and os.geteuid() == 0 and shutil.which('mount') is not None


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
  """Mounts a disk of `size` bytes at a folder; yields a function that changes its size.

  The disk and all that is on it are gone when the block ends.
  """
  folder.mkdir(parents=True, exist_ok=True)

  def mount(size, *more):
    options = ','.join([f'size={size}', *more])
    subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder], check=True)

  mount(size)
  try:
    yield lambda size: mount(size, 'remount')
  finally:
    subprocess.run(['umount', '--lazy', folder], check=True)
