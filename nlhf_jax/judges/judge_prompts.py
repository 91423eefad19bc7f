"""Templates: prompts that ask a language model which of two responses is better.

The left response is shown first. How answers are read is in `verdicts`.
"""

import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nlhf_jax.errors import UserError
from nlhf_jax.judges.verdicts import CHOICES, Read, read_label
from nlhf_jax.storage import json_files

Messages = list[dict[str, str]]
COLUMNS = ('name', 'system_prompt', 'prompt_template', 'output_format')


class Template(NamedTuple):
  """`messages(prompt, left, right)` are sent; `read(answer)` returns P(left > right) or None.

  `sampling` holds the fields of the request that suit the template.
  """

  messages: Callable[[str, str, str], Messages]
  read: Read
  sampling: Mapping[str, Any]


def _summaries() -> Template:
  """The template of arXiv 2312.00886, appendix G: two summaries, and the answer 1 or 2."""
  instruction = (
    'You are an expert rater of summaries. Read a text and two summaries of it, and say which '
    'summary is better. Answer with its number, 1 or 2, and nothing else.'
  )

  def messages(prompt, left, right):
    fields = {'Text': prompt, 'Summary 1': left, 'Summary 2': right, 'Preferred Summary': ''}
    parts = [instruction, *(f'{name} - {text}'.rstrip() for name, text in fields.items())]
    return [{'role': 'user', 'content': '\n\n'.join(parts)}]

  # Room for judges that explain themselves: an answer that is cut has no verdict.
  sampling = {'temperature': 0.0, 'max_tokens': 512, 'logprobs': True, 'top_logprobs': 5}
  return Template(messages, read_label, sampling)


SUMMARIES = _summaries()


# --- FastChat's judge_prompts.jsonl ---


def read_prompts(path: str | Path) -> dict[str, dict]:
  """The prompts of a judge by name: rows of FastChat's `judge_prompts.jsonl`.

  Raises:
    UserError: if a row cannot be used, or repeats a name; the message names it.
  """
  prompts: dict[str, dict] = {}
  for number, row in enumerate(json_files.read(path), start=1):
    name, _, template, _ = (json_files.field(path, number, row, one, str) for one in COLUMNS)
    if name in prompts:
      raise UserError(f"{path}, row {number}: a row before is called '{name}', too; rename one.")
    try:
      template_fields(template)
    except ValueError as error:
      raise UserError(
        f"{path}, row {number}: field 'prompt_template' cannot be filled ({error}); write fields "
        'as {question}, and other braces as {{ and }}.'
      ) from None
    prompts[name] = row
  return prompts


def template_fields(template: str) -> set[str]:
  """The names of the fields of a template; `template.format(**fields)` fills it.

  Raises:
    ValueError: if a brace has no partner, or a field is more than a name, such as {a.b} or {a:>9}.
  """
  names = set()
  for _, name, form, conversion in string.Formatter().parse(template):
    if name is not None:
      if not name.isidentifier() or form or conversion:
        raise ValueError(f"field '{name[:40]}' is not a plain name")
      names.add(name)
  return names


def pairwise_template(path: str | Path, name: str) -> Template:
  """The template of a pairwise prompt, such as `pair-v2`, in FastChat's `judge_prompts.jsonl`.

  Args:
    path: of the file.
    name: of a prompt of type `pairwise` whose fields are {question}, {answer_a} and {answer_b}.

  Raises:
    UserError: if the file cannot be read, or has no such prompt.
  """
  wanted = {'question', 'answer_a', 'answer_b'}
  prompts = {
    key: row
    for key, row in read_prompts(path).items()
    if row.get('type') == 'pairwise' and template_fields(row['prompt_template']) == wanted
  }
  if name not in prompts:
    raise UserError(
      f"the judge's prompts '{path}' have no pairwise '{name}' with the fields {sorted(wanted)}; "
      f'choose one of {sorted(prompts)}.'
    )
  row = prompts[name]
  if row['output_format'] not in CHOICES:
    raise UserError(
      f"{path}: the output_format of '{name}' is {row['output_format']!r:.60}; it must be "
      f'{" or ".join(CHOICES)}.'
    )
  system, user = row['system_prompt'], row['prompt_template']

  def messages(prompt, left, right):
    content = user.format(question=prompt, answer_a=left, answer_b=right)
    return [{'role': 'system', 'content': system}, {'role': 'user', 'content': content}]

  sampling = {'temperature': 0.0, 'max_tokens': 2048}
  return Template(messages, CHOICES[row['output_format']], sampling)
