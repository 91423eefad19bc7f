"""Files of responses that were generated elsewhere, in one of several layouts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks import annotation_files
from nlhf_jax.storage import json_files

PROMPTS = ('prompt', 'instruction', 'question')
RESPONSES = ('response', 'output', 'completion', 'answer')


class FiledResponses(NamedTuple):
  """A policy's responses by prompt and, if the file has them, a published judge's annotations.

  `annotations` are rows of AlpacaEval's `annotations.json`.
  """

  responses: Mapping[str, str]
  annotations: Sequence[Mapping] = ()


def read(path: str | Path, references: Sequence[Mapping] = ()) -> dict[str | None, FiledResponses]:
  """The policies of a file by name; the name is None if the file gives none.

  A row has one of
    - `preference` and `output_2` or `output`: AlpacaEval's `annotations.json`, named by
      `generator_2`;
    - `prompt` and `responses`, policy -> response: this package's `samples.jsonl`;
    - one of `PROMPTS` and one of `RESPONSES`, such as AlpacaEval's `model_outputs.json`, named by
      `generator`, if they have it. Both are texts, or lists of one message; an `input` beside the
      prompt is appended to it.
    - `messages`, of a user and the assistant.

  Args:
    path: a JSON list or JSON lines, gzipped or not.
    references: outputs of AlpacaEval's reference, for annotations.

  Raises:
    UserError: if a row cannot be used; the message names it.
  """
  rows = json_files.read(path)
  first = rows[0]
  if 'preference' in first and ('output_2' in first or 'output' in first):
    rows = annotation_files.read_annotations(path, references)
    outputs = {row['instruction']: row['output_2'] for row in rows}
    return {_name(rows[0].get('generator_2')): FiledResponses(outputs, rows)}
  if 'responses' in first:
    return _read_samples(path, rows)
  for number, row in enumerate(rows, start=1):
    if row.get('generator') != first.get('generator'):
      raise UserError(
        f"{path}, row {number}: field 'generator' is {row.get('generator')!r} after "
        f'{first.get("generator")!r}; give each policy a file of its own.'
      )
  fields = ('messages', 'messages') if 'messages' in first else _find_fields(path, first)
  pairs = [_read_pair(path, number, row, *fields) for number, row in enumerate(rows, start=1)]
  _check_prompts(path, [prompt for prompt, _ in pairs])
  return {_name(first.get('generator')): FiledResponses(dict(pairs))}


def _name(value: object) -> str | None:
  return value if isinstance(value, str) and value else None


def _find_fields(path, first) -> list[str]:
  """The fields of the prompt and of the response, by those of the first row."""
  found = []
  for what, names in (('prompt', PROMPTS), ('response', RESPONSES)):
    present = [name for name in names if name in first]
    if len(present) != 1:
      raise UserError(
        f'{path}, row 1: it must have its {what} in one of the fields {", ".join(names)}, and has '
        f'{", ".join(present) or str(sorted(first))[:400]}; rename or remove fields.'
      )
    found += present
  return found


def _read_pair(path, number, row, prompt_field, response_field) -> tuple[str, str]:
  if prompt_field == 'messages':
    turns = json_files.field(path, number, row, 'messages', list)
    if len(turns) != 2:
      raise UserError(
        f"{path}, row {number}: field 'messages' has {len(turns)} messages; a tournament compares "
        'responses to single prompts: a message of the user and one of the assistant.'
      )
    row = {'prompt': turns[:1], 'response': turns[1:]}
    prompt_field, response_field = 'prompt', 'response'
  prompt = _read_text(path, number, row, prompt_field, 'user')
  context = row.get('input') or ''
  if not isinstance(context, str):
    raise UserError(f"{path}, row {number}: field 'input' is {context!r:.80}; it must be text.")
  response = _read_text(path, number, row, response_field, 'assistant')
  return '\n\n'.join(filter(None, (prompt, context))), response


def _read_text(path, number, row, name, role) -> str:
  """The text of a field, which may be that of one message."""
  value = json_files.field(path, number, row, name, (str, list))
  if isinstance(value, str):
    return value
  message = value[0] if len(value) == 1 and isinstance(value[0], Mapping) else {}
  if message.get('role') != role or not isinstance(message.get('content'), str):
    raise UserError(
      f"{path}, row {number}: field '{name}' is {value!r:.80}; it must be text, or one message of "
      f'the {role}.'
    )
  return message['content']


def _check_prompts(path, prompts) -> None:
  first: dict[str, int] = {}
  for number, prompt in enumerate(prompts, start=1):
    if first.setdefault(prompt, number) != number:
      raise UserError(
        f'{path}, row {number}: its prompt is that of row {first[prompt]}; remove one of them.'
      )


def _read_samples(path, rows) -> dict[str | None, FiledResponses]:
  prompts = [
    json_files.field(path, number, row, 'prompt', str) for number, row in enumerate(rows, start=1)
  ]
  _check_prompts(path, prompts)
  columns = [
    json_files.field(path, number, row, 'responses', dict)
    for number, row in enumerate(rows, start=1)
  ]
  policies = list(columns[0])
  if not policies:
    raise UserError(f'{path}, row 1: it has no responses.')
  for number, texts in enumerate(columns, start=1):
    for policy in dict.fromkeys([*policies, *texts]):
      if not isinstance(texts.get(policy), str) or policy not in columns[0]:
        raise UserError(
          f"{path}, row {number}: there is no response of '{policy}' in this row or in row 1 "
          f'(prompt {prompts[number - 1]!r:.60}); all rows need the same policies.'
        )
  return {
    policy: FiledResponses(
      {prompt: texts[policy] for prompt, texts in zip(prompts, columns, strict=True)}
    )
    for policy in policies
  }
