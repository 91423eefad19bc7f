"""Comparisons from a user's file."""

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nlhf_jax.errors import UserError

FIELDS = ('prompt', 'chosen', 'rejected')


class Record(NamedTuple):
  """One judgement: `chosen` was preferred to `rejected`."""

  prompt: str
  chosen: str
  rejected: str


class Problem(Exception):
  """Why one line cannot be used; `reason` is what lines with the same problem share."""

  def __init__(self, reason: str, detail: str = ''):
    super().__init__(reason + detail)
    self.reason = reason


def parse(line: str) -> Record:
  """A record from one line of JSON.

  Raises:
    Problem: if the line is not a JSON object with non-empty string fields `FIELDS`, or its two
      responses are the same: nothing can be learned from a choice between them.
  """
  try:
    value = json.loads(line)
  except json.JSONDecodeError as error:
    raise Problem('not valid JSON', f' (column {error.colno}: {error.msg})') from None
  except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
    raise Problem('not valid JSON', f' ({error})') from None
  if not isinstance(value, dict):
    raise Problem('not a JSON object', f' but {type(value).__name__}')
  for field in FIELDS:
    if field not in value:
      raise Problem(f"field '{field}' is missing", f'; it has {sorted(value)}')
    if not isinstance(value[field], str):
      raise Problem(f"field '{field}' is not a string", f' but {type(value[field]).__name__}')
    if not value[field].strip():
      raise Problem(f"field '{field}' is empty")
    if re.search('[\ud800-\udfff]', value[field]):
      raise Problem(f"field '{field}' holds half of a surrogate pair, which is no character")
  record = Record(*(value[field] for field in FIELDS))
  if record.chosen == record.rejected:
    raise Problem("fields 'chosen' and 'rejected' are the same")
  return record


def read_jsonl(path: str, skip_bad: bool) -> Iterator[tuple[int, Record]]:
  """The (line number, record) pairs of a JSON-lines file of `{"prompt", "chosen", "rejected"}`.

  Args:
    path: the file, UTF-8, with or without a byte-order mark. Blank lines are passed over.
    skip_bad: count and pass over lines that cannot be used, instead of raising.

  Raises:
    UserError: if the file cannot be read or, unless `skip_bad`, at the first bad line.
  """
  skipped = Counter()
  try:
    lines = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).split(b'\n')
  except OSError as error:
    raise UserError(
      f"config.data.path: cannot read '{path}': {error.strerror}; give a file of JSON lines."
    ) from None
  for number, line in enumerate(lines, start=1):
    if line.strip():
      try:
        yield number, parse(decoded(line))
      except Problem as problem:
        if not skip_bad:
          raise bad_line(path, number, str(problem)) from None
        skipped[problem.reason] += 1
  report_skipped(path, skipped)


def decoded(line: bytes) -> str:
  """The line as text.

  Raises:
    Problem: if it is not UTF-8.
  """
  try:
    return line.decode()
  except UnicodeDecodeError as error:
    raise Problem('not UTF-8', f' (byte {error.start + 1} of the line)') from None


def bad_line(path: str, number: int, problem: str, remedy: str = 'correct it') -> UserError:
  """The sentence for a line that cannot be used."""
  return UserError(
    f'{path}, line {number}: {problem}; {remedy}, or pass --config.data.skip_bad=True to skip and '
    'count such lines.'
  )


def report_skipped(path: str, skipped: Counter) -> None:
  """Says how many lines were skipped, and why."""
  for reason, count in sorted(skipped.items()):
    print(f'{path}: skipped {count} line{"s" if count > 1 else ""}: {reason}.')
