"""Templates: prompts that ask a language model which of two responses is better, and their parsers.

The left response is shown first. A parser returns P(left > right): 1, 0 or 1/2 from a text, any
probability if the endpoint returns log-probabilities; None if the answer contains no verdict.
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
  """The answer of an endpoint.

  `first` holds the log-probabilities (nats) of the most likely tokens at the first position whose
  token has a letter or digit; it is empty if the endpoint returns none.
  """

  text: str
  first: Mapping[str, float]
  prompt_tokens: int
  response_tokens: int


class Template(NamedTuple):
  """`messages(prompt, left, right)` are sent; `read(answer)` returns P(left > right) or None.

  `sampling` holds the fields of the request that suit the template.
  """

  messages: Callable[[str, str, str], Messages]
  read: Callable[[Answer], float | None]
  sampling: Mapping[str, Any]


def strip_token(token: str) -> str:
  """The token in lower case, without surrounding whitespace and punctuation."""
  return re.sub(r'^[\W_]+|[\W_]+$', '', token).lower()


def probability_from_first_token(
  labels: Mapping[str, float], first: Mapping[str, float]
) -> float | None:
  """P = sum_l p(l) labels[l] / sum_l p(l), with p(l) summed over all spellings of a label.

  None if the labels have less than half of the probability: the answer does not begin with one.
  """
  mass = dict.fromkeys(labels, 0.0)
  for token, log_prob in first.items():
    if strip_token(token) in mass:
      mass[strip_token(token)] += math.exp(log_prob)
  total = sum(mass.values())
  if total < 0.5:
    return None
  return sum(p * labels[label] for label, p in mass.items()) / total


def _summaries() -> Template:
  """The template of arXiv 2312.00886, appendix G: two summaries, and the answer 1 or 2."""
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
    probability = probability_from_first_token(labels, answer.first)
    if probability is None:
      line = next(iter(answer.text.strip().splitlines()), '')
      probability = labels.get(strip_token(strip_token(line).removeprefix('summary')))
    return probability

  sampling = {'temperature': 0.0, 'max_tokens': 16, 'logprobs': True, 'top_logprobs': 5}
  return Template(messages, read, sampling)


SUMMARIES = _summaries()


def read_bracketed(answer: Answer) -> float | None:
  """The verdict of MT-Bench: `[[A]]` left, `[[B]]` right, `[[C]]` a tie, anywhere in the text.

  The letter or `tie` alone is a verdict, too; an answer with several different verdicts has none.
  """
  labels = {'a': 1.0, 'b': 0.0, 'c': 0.5, 'tie': 0.5}
  found = {letter.lower() for letter in re.findall(r'\[\[([ABC])\]\]', answer.text)}
  if len(found) > 1:
    return None
  return labels.get(found.pop() if found else strip_token(answer.text))


def mt_bench(path: Path, name: str) -> Template:
  """The template of a pairwise prompt, such as `pair-v2`, in FastChat's `judge_prompts.jsonl`.

  Args:
    path: of the file, whose lines have `name`, `type`, `system_prompt` and `prompt_template`.
    name: of a prompt of type `pairwise` whose fields are {question}, {answer_a} and {answer_b}.

  Raises:
    UserError: if the file cannot be read, or has no such prompt.
  """
  try:
    rows = [json.loads(line) for line in path.read_text('utf-8').splitlines() if line.strip()]
    prompts = {row['name']: _texts(row) for row in rows if row['type'] == 'pairwise'}
    fields = {key: _fields(user) for key, (_, user) in prompts.items()}
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
  system, user = prompts[name]

  def messages(prompt, left, right):
    content = user.format(question=prompt, answer_a=left, answer_b=right)
    return [{'role': 'system', 'content': system}, {'role': 'user', 'content': content}]

  return Template(messages, read_bracketed, {'temperature': 0.0, 'max_tokens': 2048})


def _texts(row: Mapping[str, Any]) -> tuple[str, str]:
  texts = row['system_prompt'], row['prompt_template']
  if not all(isinstance(text, str) for text in texts):
    raise TypeError(f"a prompt of '{row['name']}' is not a text")
  return texts


def _fields(template: str) -> set[str]:
  return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
