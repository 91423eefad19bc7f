"""Templates: how a language model is asked which of two responses is better, and how it is read.

Left is always shown first. What is read is P(left > right): 1, 0 or 1/2 from a text, anything
between where the endpoint gives log-probabilities; None where the answer says nothing.
"""

import json
import math
import re
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nlhf_jax.errors import UserError, first_line

Messages = list[dict[str, str]]


class Answer(NamedTuple):
  """What an endpoint answered.

  `first` has the log-probabilities, in nats, of the likeliest tokens in the place of the first one
  with a letter or digit; it is empty where the endpoint gives none. Both counts are of tokens.
  """

  text: str
  first: Mapping[str, float]
  prompt_tokens: int
  response_tokens: int


class Template(NamedTuple):
  """`messages(prompt, left, right)` asks, `read(answer)` gives P(left > right) or None.

  `sampling` has the fields of the request that suit it.
  """

  messages: Callable[[str, str, str], Messages]
  read: Callable[[Answer], float | None]
  sampling: Mapping[str, Any]


def strip_token(token: str) -> str:
  """A token in lower case, without blanks and punctuation around it."""
  return re.sub(r'^[\W_]+|[\W_]+$', '', token).lower()


def probability_from_first_token(
  labels: Mapping[str, float], first: Mapping[str, float]
) -> float | None:
  """P = sum_l p(l) labels[l] / sum_l p(l), p(l) over all spellings of a label.

  None unless the labels have at least half of the probability: else the answer begins otherwise.
  """
  mass = dict.fromkeys(labels, 0.0)
  for token, log_prob in first.items():
    if strip_token(token) in mass:
      mass[strip_token(token)] += math.exp(log_prob)
  total = sum(mass.values())
  if total < 0.5:
    return None
  return sum(share * labels[label] for label, share in mass.items()) / total


def _summaries() -> Template:
  """The form of the judges of arXiv 2312.00886, appendix G: two summaries, the answer is 1 or 2."""
  labels = {'1': 1.0, '2': 0.0, 'tie': 0.5}
  instruction = (
    'You are an expert rater of summaries. Read a text and two summaries of it, and say which '
    'summary is better. Answer with its number, 1 or 2, and nothing else.'
  )

  def messages(prompt, left, right):
    fields = {'Text': prompt, 'Summary 1': left, 'Summary 2': right, 'Preferred Summary': ''}
    parts = [instruction, *(f'{name} - {text}'.rstrip() for name, text in fields.items())]
    return [{'role': 'user', 'content': '\n\n'.join(parts)}]

  def read(answer):
    said = probability_from_first_token(labels, answer.first)
    if said is None:
      line = next(iter(answer.text.strip().splitlines()), '')
      said = labels.get(strip_token(strip_token(line).removeprefix('summary')))
    return said

  sampling = {'temperature': 0.0, 'max_tokens': 16, 'logprobs': True, 'top_logprobs': 5}
  return Template(messages, read, sampling)


SUMMARIES = _summaries()


def read_bracketed(answer: Answer) -> float | None:
  """The verdict of MT-Bench: `[[A]]` left, `[[B]]` right, `[[C]]` a tie, in any place of the text.

  An answer that is nothing but the letter or `tie` is one too; one with several verdicts is none.
  """
  labels = {'a': 1.0, 'b': 0.0, 'c': 0.5, 'tie': 0.5}
  found = {letter.lower() for letter in re.findall(r'\[\[([ABC])\]\]', answer.text)}
  if len(found) > 1:
    return None
  return labels.get(found.pop() if found else strip_token(answer.text))


def mt_bench(path: Path, name: str) -> Template:
  """A pairwise prompt of a file `judge_prompts.jsonl` in FastChat's layout, as `pair-v2`.

  Args:
    path: of the file; of each line `name`, `type`, `system_prompt` and `prompt_template` are read.
    name: of a prompt of type `pairwise` whose fields are {question}, {answer_a} and {answer_b}.

  Raises:
    UserError: if the file cannot be read, or has no such prompt.
  """
  try:
    rows = [json.loads(line) for line in path.read_text('utf-8').splitlines() if line.strip()]
    prompts = {row['name']: _texts(row) for row in rows if row['type'] == 'pairwise'}
    fields = {key: _fields(asked) for key, (_, asked) in prompts.items()}
  except OSError as error:
    raise UserError(f"cannot read the judge's prompts '{path}': {error.strerror}.") from None
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise UserError(
      f"the judge's prompts '{path}' are not in the layout of FastChat's judge_prompts.jsonl "
      f'({type(error).__name__}: {first_line(error)}).'
    ) from None
  wanted = {'question', 'answer_a', 'answer_b'}
  usable = sorted(key for key, names in fields.items() if names == wanted)
  if name not in usable:
    raise UserError(
      f"the judge's prompts '{path}' have no pairwise '{name}' with the fields {sorted(wanted)}; "
      f'choose one of {usable}.'
    )
  system, asked = prompts[name]

  def messages(prompt, left, right):
    content = asked.format(question=prompt, answer_a=left, answer_b=right)
    return [{'role': 'system', 'content': system}, {'role': 'user', 'content': content}]

  return Template(messages, read_bracketed, {'temperature': 0.0, 'max_tokens': 2048})


def _texts(row: Mapping[str, Any]) -> tuple[str, str]:
  texts = row['system_prompt'], row['prompt_template']
  if not all(isinstance(text, str) for text in texts):
    raise TypeError(f"a prompt of '{row['name']}' is no text")
  return texts


def _fields(template: str) -> set[str]:
  return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
