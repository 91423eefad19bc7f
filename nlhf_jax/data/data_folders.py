"""Which files of a folder are its data: what its manifests list, and complete sets of shards."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from nlhf_jax.data.readers import SUFFIXES, damaged_file, file_kind
from nlhf_jax.errors import UserError

# What `datasets` writes beside the data: the splits of a folder, and the files of one split.
SPLITS, STATE = 'dataset_dict.json', 'state.json'
METADATA = (SPLITS, STATE, 'dataset_info.json', 'dataset_infos.json')

# A shard, as the hub names it: `train-00000-of-00002`, before 2023 with a digest of its content.
SHARD = re.compile(r'(.*?)[-_.]?(\d+)[-_]of[-_](\d+)(?:[-_][0-9a-f]{8,})?')


def find_files(folder: Path) -> list[Path]:
  """The data files below a folder, in order; `.json` only where there is no other kind.

  Hidden folders and the caches of `datasets` (`cache-*.arrow`) are passed over. Where `datasets`
  saved the folder, only the files that its manifests list are data.

  Raises:
    OSError: if a folder cannot be read.
    UserError: if a manifest is damaged, or lists what cannot be read.
  """
  found = {}  # file -> its place in the order
  for place, folders, names in os.walk(folder, onerror=_raise):
    here, listed = Path(place), None
    if SPLITS in names:
      folders[:] = _listed_splits(here)
    if STATE in names:
      listed = _listed_files(here)
    if listed is None:
      folders[:] = [name for name in folders if name[0] != '.']
      found |= {here / name: (*here.parts, name) for name in names if _is_data(name)}
    else:
      folders.clear()
      found |= {file: (*here.parts, f'{i:09}') for i, file in enumerate(listed)}
  tables = [file for file in found if file_kind(file) != '.json']
  return sorted(tables or found, key=found.__getitem__)


def _raise(error: OSError) -> None:
  raise error


def _is_data(name: str) -> bool:
  cache = name.startswith('cache-') and name.endswith('.arrow')
  known = file_kind(Path(name)) in SUFFIXES
  return known and not (cache or name.startswith('.') or name in METADATA)


def _read_manifest(path: Path) -> dict:
  try:
    value = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise damaged_file(path, error) from None
  if not isinstance(value, dict):
    raise damaged_file(path, 'it is not a JSON object')
  return value


def _listed_splits(folder: Path) -> list[str]:
  """The folders of the splits that a saved `DatasetDict` has."""
  names = _read_manifest(folder / SPLITS).get('splits')
  if not (isinstance(names, list) and all(_is_plain_name(name) for name in names)):
    raise damaged_file(folder / SPLITS, "its 'splits' are no list of names")
  for name in names:
    if not (folder / name).is_dir():
      raise UserError(f"{folder / SPLITS} lists the split '{name}', which is missing; copy it too.")
  return names


def _listed_files(folder: Path) -> list[Path] | None:
  """The files of a saved `Dataset`, in its order; None if the manifest is one of something else.

  Raises:
    UserError: also if the rows are filtered or shuffled by a mapping of indices.
  """
  path = folder / STATE
  state = _read_manifest(path)
  if '_data_files' not in state:
    return None
  entries = state['_data_files']
  valid = isinstance(entries, list) and all(
    isinstance(entry, dict) and _is_plain_name(entry.get('filename')) for entry in entries
  )
  if not valid:
    raise damaged_file(path, "its '_data_files' are no list of files beside it")
  mapped = [key for key, value in state.items() if key.startswith('_indices') and value]
  if mapped or any(set(entry) - {'filename'} for entry in entries):
    raise UserError(
      f'{path}: the rows are selected or reordered by {mapped[0] if mapped else "_data_files"}, '
      'which is not followed here; load it with `datasets`, call flatten_indices(), and save it '
      'again.'
    )
  files = [folder / entry['filename'] for entry in entries]
  for file in files:
    if not file.is_file():
      raise UserError(f"{path} lists '{file.name}', which is missing; copy it too.")
  return files


def _is_plain_name(name) -> bool:
  """Whether a name in a manifest is one of a file or folder beside it."""
  plain = isinstance(name, str) and name not in ('', '.', '..')
  return plain and not set(name) & set('/\\\0') and name.isprintable()


def split_parts(file: Path) -> tuple[str, ...]:
  """The names that may denote a file's split: its folders, and its own name without a number."""
  stem = file.name.partition('.')[0]
  shard = SHARD.fullmatch(stem)
  name = shard[1] if shard else stem
  return (*file.parts[:-1], *([] if name.isdecimal() else [name]))


def check_shards(name: str, files: Sequence[Path]) -> tuple[Path, ...]:
  """The files, if they are of one kind and all shards are there once.

  Raises:
    UserError: names what is missing, or there twice.
  """
  kinds = sorted({file_kind(file) for file in files})
  if len(kinds) > 1:
    raise UserError(
      f"config.data.path: '{name}' has this split in files of {' and '.join(kinds)}; give those of "
      'one kind by their paths, or their folder in config.data.split.'
    )
  shards = defaultdict(list)
  for file in files:
    if found := SHARD.fullmatch(file.name.partition('.')[0]):
      shards[file.parent / found[1]].append((int(found[2]), int(found[3])))
  for place, known in shards.items():
    numbers, totals = [number for number, _ in known], {total for _, total in known}
    if len(set(numbers)) < len(numbers) or len(totals) > 1:
      raise UserError(
        f"'{place}' has shards of more than one version, as {len(known)} files that belong to sets "
        f'of {" and ".join(map(str, sorted(totals)))}; delete the older ones.'
      )
    (total,) = totals
    if len(numbers) != total or (min(numbers), max(numbers)) not in ((0, total - 1), (1, total)):
      has = ', '.join(map(str, sorted(numbers)[:8])) + ', ...' * (len(numbers) > 8)
      raise UserError(
        f"'{place}' lacks shards: of {total} it has the numbers {has}; download the others, or "
        'give the file to read as config.data.path.'
      )
  return tuple(files)
