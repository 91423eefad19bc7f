"""Reads the rows of sources as examples, by their schemas, and reports rows that cannot be used."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from nlhf_jax.data import sources
from nlhf_jax.data.readers import Problem
from nlhf_jax.data.schemas import SCHEMAS, Example
from nlhf_jax.data.sources import Source
from nlhf_jax.errors import UserError
from nlhf_jax.storage.texts import printable

# Number of the file, number of the row in it, and the example or its problem.
Entry = tuple[int, int, Example | Problem]


class ExampleSource(NamedTuple):
  """One source, and the schema of its rows."""

  source: Source
  schema: Callable[..., Example]


def locate(path: str, schema: str, split: str) -> list[ExampleSource]:
  """The sources that the settings name, and their schemas.

  Args:
    path: names of sources, as `sources.locate` takes them, separated by commas.
    schema: names in `schemas.SCHEMAS`, one for all sources or one for each.
    split: which of a source's own splits to read, one for all or one for each.

  Raises:
    UserError: if there is no such source, split or schema, or their numbers differ.
  """
  located = sources.locate_all(path, split)
  names = sources.one_per_source('schema', schema, len(located))
  for name in names:
    if name not in SCHEMAS:
      raise UserError(f"config.data.schema='{name}' is none of {', '.join(SCHEMAS)}.")
  return [ExampleSource(source, SCHEMAS[name]) for source, name in zip(located, names, strict=True)]


def read_entries(located: Sequence[ExampleSource]) -> Iterator[Entry]:
  """Yields every row as an example or a problem; files are numbered through all sources.

  Raises:
    UserError: if a file cannot be read.
  """
  files_before = 0
  for source, schema in located:
    for file, number, row in sources.read_rows(source, schema.fields):
      try:
        example = row if isinstance(row, Problem) else schema(row)
      except Problem as problem:
        example = problem
      yield files_before + file, number, example
    files_before += len(source.files)


def read_examples(path: str, schema: str, split: str, skip_bad: bool) -> Iterator[Example]:
  """Yields the examples of a source one by one, for sets that are judged rather than learned from.

  Raises:
    UserError: as `locate` and `read_entries` and, unless `skip_bad`, at the first row that cannot
      be used.
  """
  located, dropped = locate(path, schema, split), Counter()
  for file, number, example in read_entries(located):
    if not isinstance(example, Problem):
      yield example
    elif skip_bad:
      dropped[example.reason] += 1
    else:
      problem = str(example) + suggest_schema(located, file, number, example)
      raise unusable_row(describe_place(located, file, number), problem, 'correct it')
  print_skipped(path, dropped)


def suggest_schema(
  located: Sequence[ExampleSource], file: int, number: int, problem: Problem
) -> str:
  """For a row that lacks a field: the schemas with the most fields that read it, if any."""
  if not problem.reason.endswith('is missing') or 'config.data.schema' in str(problem):
    return ''
  source, file = _find_source(located, file)
  every = {field for schema in SCHEMAS.values() for field in schema.fields}
  rows = sources.read_rows(source, every)
  row = next(value for index, place, value in rows if (index, place) == (file, number))
  fits = {}
  for name, schema in SCHEMAS.items():
    with contextlib.suppress(Problem):
      schema(row)
      fits[name] = sum(field in row for field in schema.fields)
  names = [name for name in fits if fits[name] == max(fits.values())]
  return f' (config.data.schema={" or ".join(names)} reads it)' if names else ''


def _find_source(located: Sequence[ExampleSource], file: int) -> tuple[Source, int]:
  """The source of a file that is numbered through all sources, and its number in it."""
  for source, _ in located:
    if file < len(source.files):
      break
    file -= len(source.files)
  return source, file


def describe_place(located: Sequence[ExampleSource], file: int, number: int) -> str:
  """The file and the row of an entry, for messages."""
  source, file = _find_source(located, file)
  return sources.describe_place(source, file, number)


def unusable_row(where: str, problem: str, remedy: str) -> UserError:
  """The error for a row that cannot be used."""
  return UserError(
    f'{where}: {problem}; {remedy}, or pass --config.data.skip_bad=True to skip and count rows '
    'like it.'
  )


def print_skipped(path: str, dropped: Mapping[str, int]) -> None:
  """Prints how many rows were skipped, by reason."""
  for reason, count in sorted(dropped.items()):
    print(printable(f'{path}: skipped {count} row{"s" if count > 1 else ""}: {reason}.'))
