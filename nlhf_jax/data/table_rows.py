"""Reads rows from tables: Parquet, Arrow, and the array records of TensorFlow Datasets.

Only the columns that a schema reads are converted: what others hold cannot stop a run.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from nlhf_jax.data.readers import (
  MAX_EXPANSION,
  SLACK,
  Problem,
  Row,
  damaged_file,
  expands_too_much,
  import_extra,
)
from nlhf_jax.errors import UserError, first_line

CHUNK = 64  # rows of a table in memory
UNREAD = object()  # stands for the value of a column that no schema asked for


def parquet_rows(path: Path, fields: Collection[str]) -> Iterator[Row]:
  """Yields the rows of a Parquet file.

  Args:
    path: the file.
    fields: the columns to convert; others are `UNREAD`.

  Raises:
    UserError: if pyarrow is missing, or the file is damaged or expands too much.
  """
  pyarrow = import_extra('pyarrow', 'parquet')
  parquet = import_module('pyarrow.parquet')
  try:
    with parquet.ParquetFile(path, page_checksum_verification=True) as file:
      columns = _select_columns(path, file.schema_arrow.names, fields)
      _check_expansion(path, file.metadata, columns)
      batches = file.iter_batches(batch_size=CHUNK, columns=columns)
      yield from _table(file.schema_arrow.names, columns, batches)
  except (pyarrow.ArrowException, OSError) as error:
    if isinstance(error, OSError) and error.errno:
      raise
    raise damaged_file(path, error) from None


def _check_expansion(path: Path, metadata: Any, columns: Collection[str]) -> None:
  """Refuses a row group of which a column expands more than text does."""
  for number in range(metadata.num_row_groups):
    group = metadata.row_group(number)
    for column in map(group.column, range(group.num_columns)):
      packed, whole = column.total_compressed_size, column.total_uncompressed_size
      named = column.path_in_schema.partition('.')[0] in columns
      if named and whole > MAX_EXPANSION * packed + SLACK:
        raise expands_too_much(path)


def arrow_rows(path: Path, fields: Collection[str]) -> Iterator[Row]:
  """Yields the rows of an Arrow file, of the format for streams or of that for files.

  Args and errors as of `parquet_rows`.
  """
  pyarrow = import_extra('pyarrow', 'parquet')
  try:
    with pyarrow.memory_map(str(path)) as file:
      whole = file.read(6) == b'ARROW1'
      names = _open_arrow(pyarrow, file, whole, None).schema.names
      columns = _select_columns(path, names, fields)
      opened = _open_arrow(pyarrow, file, whole, [names.index(name) for name in columns])
      batches = map(opened.get_batch, range(opened.num_record_batches)) if whole else opened
      yield from _table(names, columns, (batch.select(columns) for batch in batches))
  except (pyarrow.ArrowException, OSError) as error:
    if isinstance(error, OSError) and error.errno:
      raise
    raise damaged_file(path, error) from None


def _open_arrow(pyarrow: Any, file: Any, whole: bool, columns: list[int] | None) -> Any:
  """A reader of some columns (of all, without any), so that the others are not unpacked."""
  file.seek(0)
  options = pyarrow.ipc.IpcReadOptions(included_fields=columns)
  if whole:
    return pyarrow.ipc.open_file(file, options=options)
  return pyarrow.ipc.open_stream(file, options=options)


def _select_columns(path: Path, names: list[str], fields: Collection[str]) -> list[str]:
  """The columns of a table that are fields of a row."""
  columns = [name for name in names if name in fields]
  if len(set(columns)) < len(columns):
    raise damaged_file(path, 'two columns have the same name')
  return columns


def _table(names: list[str], columns: list[str], batches: Iterable[Any]) -> Iterator[Row]:
  others = dict.fromkeys((name for name in names if name not in columns), UNREAD)
  number = 0
  for batch in batches:
    for start in range(0, batch.num_rows, CHUNK):
      for row in _values(batch.slice(start, CHUNK)):
        number += 1
        yield number, row if isinstance(row, Problem) else others | row


def _values(batch) -> list:
  """The rows of a batch, each converted alone if they cannot be converted together."""
  if not batch.num_columns:
    return [{}] * batch.num_rows
  try:
    return batch.to_pylist()
  except UnicodeDecodeError:
    problem = Problem('not UTF-8')
  except (ValueError, OverflowError, LookupError) as error:
    # LookupError: of an unknown time zone.
    problem = Problem('a value cannot be converted', f' ({first_line(error)})')
  if batch.num_rows == 1:
    return [problem]
  return [value for i in range(batch.num_rows) for value in _values(batch.slice(i, 1))]


def prepared_rows(folder: Path, split: str, fields: Collection[str]) -> Iterator[Row]:
  """Yields the rows of a split that TensorFlow Datasets prepared as array records.

  TensorFlow is not used.

  Args:
    folder: where the split lies.
    split: its name.
    fields: the columns to convert; others are `UNREAD`.

  Raises:
    UserError: if `tensorflow_datasets` is not installed, the folder cannot be read, or it does not
      have that split.
  """
  import_extra('importlib_resources', 'tfds')
  datasets = import_extra('tensorflow_datasets', 'tfds')
  try:
    builder = datasets.builder_from_directory(folder)
    source = builder.as_data_source(split=split)
    count = len(source)
  except Exception as error:  # the files decide which code runs, and what it raises
    raise UserError(
      f"{folder}: TensorFlow Datasets cannot read the split '{split}' ({first_line(error)}); "
      "prepare it with file_format='array_record'."
    ) from None
  for index in range(count):
    try:
      value = source[index]
    except Exception as error:
      raise damaged_file(folder, error) from None
    yield index + 1, _plain_row(value, fields)


def _plain_row(row, fields) -> Any:
  try:
    return {key: _plain(value) if key in fields else UNREAD for key, value in row.items()}
  except UnicodeDecodeError:
    return Problem('not UTF-8')


def _plain(value) -> Any:
  """Converts NumPy arrays and bytes to numbers, lists and text."""
  if isinstance(value, Mapping):
    return {key: _plain(item) for key, item in value.items()}
  if hasattr(value, 'tolist'):
    return _plain(value.tolist())
  if isinstance(value, list):
    return [_plain(item) for item in value]
  return value.decode() if isinstance(value, bytes) else value
