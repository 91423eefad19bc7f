"""Sources of rows: a file, a folder of files, or a dataset on the Hugging Face hub."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub

from nlhf_jax.data import formats, readers
from nlhf_jax.data.data_folders import check_shards, find_files, split_parts
from nlhf_jax.data.readers import SUFFIXES
from nlhf_jax.data.table_rows import prepared_rows
from nlhf_jax.errors import UserError, first_line
from nlhf_jax.storage import store_inputs

PREPARED = 'features.json'  # a file beside the array records of TensorFlow Datasets
# Names of the files of a folder that are downloaded from a store.
STORED = [f'*{kind}{packed}' for kind in SUFFIXES for packed in ('', '.gz')] + ['*.array_record*']


class Source(NamedTuple):
  """Files in a fixed order; `split` is the name of a split of TensorFlow Datasets."""

  name: str
  files: tuple[Path, ...]
  split: str = ''


def locate(name: str, split: str) -> Source:
  """The files of a source.

  Args:
    name: a file, a folder (of files, or as `datasets` saved it, or as TensorFlow Datasets prepared
      it), either of them in a store (`gs://...`, `s3://...`), or `OWNER/NAME` on the Hugging Face
      hub. What is in a store or on the hub is downloaded. No code of a dataset is run.
    split: which files of a folder: `train` selects `train.jsonl`, `train-00000-of-00002.parquet`,
      and all files below a folder `train`; `a/train` those that belong to both.

  Raises:
    UserError: if the name does not exist, no file can be read, a shard is missing, or there are
      several splits and none is named.
  """
  path = Path(name)
  if store_inputs.is_url(name):
    path = store_inputs.download(name, STORED, STORED, 'config.data.path')
  with readers.checked_path(path):
    folder = path.is_dir()
    if path.is_file() or (readers.file_kind(path) in SUFFIXES and not folder):
      return Source(name, (path,))  # whether the file exists is checked when it is read
  if not folder:
    path = _download(name, split)
  if (path / PREPARED).is_file():
    records = sorted(path.glob('*.array_record*'))
    splits = sorted({file.name.partition('.')[0].rpartition('-')[2] for file in records})
    chosen = _select_split(name, [(one,) for one in splits], split)[0][0]
    files = [file for file in records if file.name.partition('.')[0].endswith(f'-{chosen}')]
    return Source(name, (path / PREPARED, *files), chosen)
  with readers.checked_path(path):
    found = {file: split_parts(file.relative_to(path)) for file in find_files(path)}
  if not found:
    raise UserError(
      f"config.data.path: '{name}' holds no data; give files of {', '.join(SUFFIXES)}."
    )
  chosen = _select_split(name, list(found.values()), split)
  return Source(name, check_shards(name, [file for file in found if found[file] in chosen]))


def _select_split(name, of_files: Sequence[tuple[str, ...]], split: str) -> list[tuple[str, ...]]:
  """The splits that the setting `split` selects; it may be empty if there is only one split."""
  known = sorted({'/'.join(parts) for parts in of_files})
  if split:
    wanted = split.split('/')
    found = [parts for parts in of_files if all(part in parts for part in wanted)]
  else:
    found = list(of_files) if len(known) == 1 else []
  if not found:
    problem = f"='{split}' is none" if split else ' must be one'
    raise UserError(f"config.data.split{problem} of those of '{name}': {', '.join(known)[:500]}.")
  return found


def _download(name: str, split: str) -> Path:
  last = f'*{split.split("/")[-1]}' if split else ''
  wanted = [f'{last}*{kind}{packed}' for kind in SUFFIXES for packed in ('', '.gz')]
  try:
    return Path(huggingface_hub.snapshot_download(name, repo_type='dataset', allow_patterns=wanted))
  except (OSError, ValueError) as error:  # no such data set, no network, or an invalid name
    raise UserError(
      f"config.data.path: cannot read '{name}': No such file or directory, and the Hugging Face "
      f'hub did not provide it ({first_line(error)}); give a file, a folder, or OWNER/NAME.'
    ) from None


def locate_all(names: str, splits: str) -> list[Source]:
  """The sources of these names, separated by commas; one split for all of them, or one for each.

  Raises:
    UserError: as `locate`, or if the numbers of names and splits do not fit.
  """
  names = [name.strip() for name in names.split(',')]
  return [
    locate(*pair) for pair in zip(names, one_per_source('split', splits, len(names)), strict=True)
  ]


def one_per_source(field: str, values: str, count: int) -> list[str]:
  """The values of a setting, separated by commas: one for each of `count` sources.

  A single value is repeated for all of them.

  Raises:
    UserError: if there is neither one value nor `count`.
  """
  given = [value.strip() for value in values.split(',')]
  if len(given) not in (1, count):
    raise UserError(
      f"config.data.{field}='{values}' names {len(given)} for {count} sources; give one for all, "
      'or one for each.'
    )
  return given * count if len(given) == 1 else given


def digest(sources: Iterable[Source]) -> str:
  """A digest of the contents of the files, whatever their paths.

  Raises:
    UserError: if one cannot be read.
  """
  digests = [' '.join(map(_digest, source.files)) for source in sources]
  return hashlib.sha256('\n'.join(digests).encode()).hexdigest()


def _digest(file: Path) -> str:
  with readers.checked_file(file), file.open('rb') as opened:
    return hashlib.file_digest(opened, 'sha256').hexdigest()


def read_rows(source: Source, fields: Collection[str]) -> Iterator[tuple[int, int, Any]]:
  """Yields all rows: number of the file, number of the row from 1, and the row or its problem.

  Args:
    source: the files.
    fields: those of a row that are used.

  Raises:
    UserError: if a file cannot be read.
  """
  if source.split and source.files[0].name == PREPARED:
    for number, value in prepared_rows(source.files[0].parent, source.split, fields):
      yield 0, number, value
    return
  for index, file in enumerate(source.files):
    for number, value in formats.read_rows(file, fields):
      yield index, number, value


def describe_place(source: Source, file: int, number: int) -> str:
  """The file and the number of a row, for messages."""
  return f'{source.files[file]}, {formats.row_noun(source.files[file])} {number}'
