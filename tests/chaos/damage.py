"""Damages one file of a work directory, as a bad disk or a careless hand would."""

import random
from pathlib import Path

HOW = ('flip', 'truncate', 'delete', 'empty')
# Nothing is read from these.
UNREAD = ('.lock', 'report.html', '.png', '.log')


def damage_one(random_: random.Random, workdir: Path) -> str:
  """Damages a file and returns what was done; each sort of files is equally likely."""
  sorts: dict[str, list[Path]] = {}
  for path in sorted(workdir.rglob('*')):
    if path.is_file() and not path.name.endswith(UNREAD) and 'tfevents' not in path.name:
      sorts.setdefault(_sort(path.relative_to(workdir)), []).append(path)
  if not sorts:
    return 'nothing'
  path = random_.choice(sorts[random_.choice(sorted(sorts))])
  how = random_.choice(HOW)
  damage(random_, path, how)
  return f'{how} {path.relative_to(workdir)}'


def _sort(path: Path) -> str:
  """Checkpoints, tokenised data, records of stages, ...: the folder or, without one, the name."""
  if 'checkpoints' in path.parts:
    return 'checkpoints'
  if any(part.startswith('data-') for part in path.parts):
    return 'data'
  return path.name


def damage(random_: random.Random, path: Path, how: str) -> None:
  """Changes one byte of a file, cuts it, deletes it or empties it."""
  content = path.read_bytes()
  if how == 'delete':
    path.unlink()
  elif how == 'empty' or not content:
    path.write_bytes(b'')
  elif how == 'truncate':
    path.write_bytes(content[: random_.randrange(len(content))])
  else:
    place = random_.randrange(len(content))
    changed = content[place] ^ (1 << random_.randrange(8))
    path.write_bytes(content[:place] + bytes([changed]) + content[place + 1 :])
