"""Sources read by their forms: what the rows say, and what is said of rows that cannot be used."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from nlhf_jax.data import sources
from nlhf_jax.data.readers import Problem
from nlhf_jax.data.schemas import FORMS, Record
from nlhf_jax.data.sources import Source
from nlhf_jax.errors import UserError

Entry = tuple[int, int, Record | Problem]  # the file, the row in it, and what it says


class Reading(NamedTuple):
  """One source, and the form of its rows."""

  source: Source
  form: Callable[..., Record]


def locate(path: str, form: str, split: str) -> list[Reading]:
  """The sources that the settings name, and their forms.

  Args:
    path: names as `sources.locate` has them, separated by commas.
    form: names in `forms.FORMS`, one for all or one each.
    split: which of a source's own splits to read, one for all or one each.

  Raises:
    UserError: if there is no such source, split or form, or not as many of them.
  """
  found = sources.locate_all(path, split)
  forms = sources.for_each('form', form, len(found))
  for one in forms:
    if one not in FORMS:
      raise UserError(f"config.data.form='{one}' is none of {', '.join(FORMS)}.")
  return [Reading(source, FORMS[one]) for source, one in zip(found, forms, strict=True)]


def read(readings: Sequence[Reading]) -> Iterator[Entry]:
  """Every row, as a record or the problem with it; files are numbered through all sources.

  Raises:
    UserError: if a file cannot be read.
  """
  before = 0
  for source, form in readings:
    for file, number, row in sources.read(source):
      try:
        yield before + file, number, row if isinstance(row, Problem) else form(row)
      except Problem as problem:
        yield before + file, number, problem
    before += len(source.files)


def records(path: str, form: str, split: str, skip_bad: bool) -> Iterator[Record]:
  """The records of a source, one by one; for sets that are judged rather than learned from.

  Raises:
    UserError: as `locate` and `read` and, unless `skip_bad`, at the first row that cannot be used.
  """
  readings, dropped = locate(path, form, split), Counter()
  for file, number, said in read(readings):
    if not isinstance(said, Problem):
      yield said
    elif skip_bad:
      dropped[said.reason] += 1
    else:
      raise unusable(place(readings, file, number), str(said), 'correct it')
  announce(path, dropped)


def place(readings: Sequence[Reading], file: int, number: int) -> str:
  """How to call the place of a row."""
  for source, _ in readings:
    if file < len(source.files):
      break
    file -= len(source.files)
  return sources.place(source, file, number)


def unusable(where: str, problem: str, remedy: str) -> UserError:
  """The sentence for a row that cannot be used."""
  return UserError(
    f'{where}: {problem}; {remedy}, or pass --config.data.skip_bad=True to skip and count rows '
    'like it.'
  )


def announce(path: str, dropped: Mapping[str, int]) -> None:
  """Says how many rows were skipped, and why."""
  for reason, count in sorted(dropped.items()):
    print(f'{path}: skipped {count} row{"s" if count > 1 else ""}: {reason}.')
