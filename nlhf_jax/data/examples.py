"""Sources read by their schemas, as examples; and the messages for rows that cannot be used."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from nlhf_jax.data import sources
from nlhf_jax.data.readers import Problem
from nlhf_jax.data.schemas import SCHEMAS, Example
from nlhf_jax.data.sources import Source
from nlhf_jax.errors import UserError

Entry = tuple[int, int, Example | Problem]  # the file, the row in it, and what it says


class ExampleSource(NamedTuple):
  """One source, and the schema of its rows."""

  source: Source
  schema: Callable[..., Example]


def locate(path: str, schema: str, split: str) -> list[ExampleSource]:
  """The sources that the settings name, and their schemas.

  Args:
    path: names as `sources.locate` has them, separated by commas.
    schema: names in `schemas.FORMS`, one for all or one each.
    split: which of a source's own splits to read, one for all or one each.

  Raises:
    UserError: if there is no such source, split or schema, or not as many of them.
  """
  found = sources.locate_all(path, split)
  schemas = sources.one_per_source('schema', schema, len(found))
  for one in schemas:
    if one not in SCHEMAS:
      raise UserError(f"config.data.schema='{one}' is none of {', '.join(SCHEMAS)}.")
  return [ExampleSource(source, SCHEMAS[one]) for source, one in zip(found, schemas, strict=True)]


def read_entries(readings: Sequence[ExampleSource]) -> Iterator[Entry]:
  """Every row, as a record or the problem with it; files are numbered through all sources.

  Raises:
    UserError: if a file cannot be read.
  """
  before = 0
  for source, schema in readings:
    for file, number, row in sources.read_rows(source):
      try:
        yield before + file, number, row if isinstance(row, Problem) else schema(row)
      except Problem as problem:
        yield before + file, number, problem
    before += len(source.files)


def read_examples(path: str, schema: str, split: str, skip_bad: bool) -> Iterator[Example]:
  """The records of a source, one by one; for sets that are judged rather than learned from.

  Raises:
    UserError: as `locate` and `read` and, unless `skip_bad`, at the first row that cannot be used.
  """
  readings, dropped = locate(path, schema, split), Counter()
  for file, number, said in read_entries(readings):
    if not isinstance(said, Problem):
      yield said
    elif skip_bad:
      dropped[said.reason] += 1
    else:
      raise unusable_row(describe_place(readings, file, number), str(said), 'correct it')
  print_skipped(path, dropped)


def describe_place(readings: Sequence[ExampleSource], file: int, number: int) -> str:
  """How to call the place of a row."""
  for source, _ in readings:
    if file < len(source.files):
      break
    file -= len(source.files)
  return sources.describe_place(source, file, number)


def unusable_row(where: str, problem: str, remedy: str) -> UserError:
  """The sentence for a row that cannot be used."""
  return UserError(
    f'{where}: {problem}; {remedy}, or pass --config.data.skip_bad=True to skip and count rows '
    'like it.'
  )


def print_skipped(path: str, dropped: Mapping[str, int]) -> None:
  """Says how many rows were skipped, and why."""
  for reason, count in sorted(dropped.items()):
    print(f'{path}: skipped {count} row{"s" if count > 1 else ""}: {reason}.')
