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
ROLES = ('system', 'user', 'assistant')


class Message(NamedTuple):
  """One turn of a conversation; `role` is one of `ROLES`."""

  role: str
  content: str


Prompt = str | tuple[Message, ...]  # a question, or a conversation that is more than one question


class Record(NamedTuple):
  """One judgement: `chosen` was preferred to `rejected`."""

  prompt: Prompt
  chosen: str
  rejected: str


class Problem(Exception):
  """Why one line cannot be used; `reason` is what lines with the same problem share."""

  def __init__(self, reason: str, detail: str = ''):
    super().__init__(reason + detail)
    self.reason = reason


def parse(line: str) -> Record:
  """A record from one line of JSON.

  A field is text or a list of messages `{"role", "content"}`. That of a prompt has a system message
  first or none, then user and assistant in turn, a user last. That of a response is the assistant's
  message, or the whole conversation: the prompt, then that message. The prompt may then be missing.

  Raises:
    Problem: if the line is not a JSON object with such fields `FIELDS`, or its two responses are
      the same: nothing can be learned from a choice between them.
  """
  try:
    value = json.loads(line)
  except json.JSONDecodeError as error:
    raise Problem('not valid JSON', f' (column {error.colno}: {error.msg})') from None
  except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
    raise Problem('not valid JSON', f' ({error})') from None
  if not isinstance(value, dict):
    raise Problem('not a JSON object', f' but {type(value).__name__}')
  whole = value.get('chosen')
  if 'prompt' not in value and isinstance(whole, list) and len(whole) > 1:
    value = {**value, 'prompt': whole[:-1]}
  for field in FIELDS:
    if field not in value:
      raise Problem(f"field '{field}' is missing", f'; it has {sorted(value)}')
  prompt = _prompt(value['prompt'])
  record = Record(prompt, *(_response(field, value[field], prompt) for field in FIELDS[1:]))
  if record.chosen == record.rejected:
    raise Problem("fields 'chosen' and 'rejected' are the same")
  return record


def messages(prompt: Prompt) -> tuple[Message, ...]:
  """The prompt as a conversation."""
  return (Message('user', prompt),) if isinstance(prompt, str) else prompt


def _prompt(value) -> Prompt:
  said = _messages('prompt', value)
  turns = [message.role for message in said if message.role != 'system']
  if turns != (['user', 'assistant'] * len(said))[: len(turns)] or len(turns) % 2 == 0:
    raise Problem("field 'prompt' is not user and assistant in turn, from a user to a user")
  if any(message.role == 'system' for message in said[1:]):
    raise Problem("field 'prompt' has a system message that is not the first")
  return said[0].content if len(said) == 1 else said


def _response(field, value, prompt) -> str:
  *before, last = _messages(field, value, role='assistant')
  if last.role != 'assistant':
    raise Problem(f"field '{field}' does not end with a message of the assistant")
  if before and tuple(before) != messages(prompt):
    raise Problem(f"field '{field}' has other messages than the prompt before its last")
  return last.content


def _messages(field, value, role='user') -> tuple[Message, ...]:
  """A field as messages; text is one message of this role."""
  if isinstance(value, str):
    return (Message(role, _text(f"field '{field}'", value)),)
  if not isinstance(value, list):
    detail = f' but {type(value).__name__}'
    raise Problem(f"field '{field}' is neither a string nor a list of messages", detail)
  if not value:
    raise Problem(f"field '{field}' is empty")
  return tuple(_message(f"a message of field '{field}'", message) for message in value)


def _message(name, value) -> Message:
  if not isinstance(value, dict):
    raise Problem(f'{name} is not a JSON object', f' but {type(value).__name__}')
  for key in Message._fields:
    if key not in value:
      raise Problem(f"{name} has no '{key}'", f'; it has {sorted(value)}')
  if value['role'] not in ROLES:
    raise Problem(f'{name} has a role that is none of {", ".join(ROLES)}', f': {value["role"]!r}')
  return Message(value['role'], _text(f"'content' in {name}", value['content']))


def _text(name, value) -> str:
  if not isinstance(value, str):
    raise Problem(f'{name} is not a string', f' but {type(value).__name__}')
  if not value.strip():
    raise Problem(f'{name} is empty')
  if re.search('[\ud800-\udfff]', value):
    raise Problem(f'{name} holds half of a surrogate pair, which is no character')
  return value


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
