"""Prompts and responses in the fields of a row: texts, or messages `{"role", "content"}`.

The content of a message is text or, as OpenAI's interface has it, a list of parts
`{"type": "text", "text"}`, which are joined.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from nlhf_jax.data.readers import Problem
from nlhf_jax.data.row_fields import check_text, list_names

ROLES = ('system', 'user', 'assistant')
TEXT_PARTS = ('text', 'input_text', 'output_text')


class Message(NamedTuple):
  """One turn of a conversation; `role` is one of `ROLES`."""

  role: str
  content: str


Prompt = str | tuple[Message, ...]  # a question, or a conversation that is more than one question


def messages(prompt: Prompt) -> tuple[Message, ...]:
  """The prompt as a conversation."""
  return (Message('user', prompt),) if isinstance(prompt, str) else prompt


def read_prompt(value: Any) -> Prompt:
  """The prompt in a field: text, or messages that end with one of the user."""
  found = _messages('prompt', value, 'user')
  turns = [message.role for message in found if message.role != 'system']
  if turns != (['user', 'assistant'] * len(found))[: len(turns)] or len(turns) % 2 == 0:
    raise Problem("field 'prompt' is not user and assistant in turn, from a user to a user")
  if any(message.role == 'system' for message in found[1:]):
    raise Problem("field 'prompt' has a system message that is not the first")
  return found[0].content if len(found) == 1 else found


def read_responses(given: Any, fields: Mapping[str, Any]) -> tuple[Prompt, list[str]]:
  """The prompt, and the responses to it.

  A response is text, the assistant's message alone, or the whole conversation: the prompt and then
  that message. The conversation may begin with a system message that the prompt lacks, which then
  belongs to the prompt.

  Args:
    given: the value of the field `prompt`.
    fields: name of each field that has a response -> its value.
  """
  prompt, texts, befores = read_prompt(given), [], set()
  for field, value in fields.items():
    *before, last = _messages(field, value, 'assistant')
    if last.role != 'assistant':
      raise Problem(f"field '{field}' does not end with a message of the assistant")
    without = before[1:] if before and before[0].role == 'system' else before
    if before and messages(prompt) not in (tuple(before), tuple(without)):
      raise Problem(f"field '{field}' has other messages than the prompt before its last")
    texts.append(last.content)
    befores |= {tuple(before)} if before else set()
  if len(befores) > 1:
    names = ' and '.join(f"'{field}'" for field in fields)
    raise Problem(f'fields {names} have different system messages')
  whole = befores.pop() if befores else messages(prompt)
  return (whole if len(whole) > len(messages(prompt)) else prompt), texts


def read_opening(field: str, value: Any) -> tuple[Prompt, str | None, tuple[str, ...]]:
  """The opening of a conversation: the first question, its answer, and what the user wrote later.

  Args:
    field: of the row.
    value: its messages; an optional system message, then user and assistant in turn.
  """
  found = _messages(field, value, 'user')
  system = found[: found[0].role == 'system']
  turns = found[len(system) :]
  if [turn.role for turn in turns] != (['user', 'assistant'] * len(turns))[: len(turns)] or (
    not turns
  ):
    raise Problem(f"field '{field}' is not user and assistant in turn, from a user on")
  prompt = (*system, turns[0]) if system else turns[0].content
  answer = turns[1].content if len(turns) > 1 else None
  return prompt, answer, tuple(turn.content for turn in turns[2::2])


def _messages(field: str, value: Any, role: str) -> tuple[Message, ...]:
  """The messages of a field; text is one message of the given role."""
  if isinstance(value, str):
    return (Message(role, check_text(f"field '{field}'", value)),)
  if not isinstance(value, list):
    detail = f' but {type(value).__name__}'
    raise Problem(f"field '{field}' is neither a string nor a list of messages", detail)
  if not value:
    raise Problem(f"field '{field}' is empty")
  return tuple(_message(f"a message of field '{field}'", message) for message in value)


def _message(name: str, value: Any) -> Message:
  if not isinstance(value, Mapping):
    raise Problem(f'{name} is not a JSON object', f' but {type(value).__name__}')
  for key in Message._fields:
    if key not in value:
      raise Problem(f"{name} has no '{key}'", f'; it has {list_names(value)}')
  role = value['role']
  if role not in ROLES:
    raise Problem(f'{name} has a role that is none of {", ".join(ROLES)}', f': {repr(role)[:80]}')
  return Message(role, _content(f"'content' in {name}", value['content']))


def _content(name: str, value: Any) -> str:
  """The text of a message's content."""
  if not isinstance(value, list):
    return check_text(name, value)
  for part in value:
    text = part.get('text') if isinstance(part, Mapping) else None
    if not isinstance(text, str) or part.get('type') not in TEXT_PARTS:
      raise Problem(f'{name} has a part that is not text', f': {ascii(part)[:80]}')
  return check_text(name, ''.join(part['text'] for part in value))
