"""MT-Bench's judgements: the prompts of the judge, and how its responses are parsed.

The judge is a language model. Questions of mathematics, reasoning and coding are judged with
reference answers. The prompts are FastChat's `judge_prompts.jsonl`, and the judge's own reference
answers its `reference_answer/JUDGE.jsonl`; neither is part of this package.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks.mt_bench_scores import FAILED, SWAPPED, Answers
from nlhf_jax.storage import json_files

# Names of prompts without and with a reference answer; `-multi-turn` is added for the second turn.
SINGLE, PAIR = ('single-v1', 'single-math-v1'), ('pair-v2', 'pair-math-v1')
WITH_REFERENCE = ('math', 'reasoning', 'coding', 'arena-hard-200')
TIE = 0.1  # scores that differ by at most this are a tie

NUMBER = r'(\d+\.?\d*)'
SCORE = [re.compile(rf'\[\[{NUMBER}\]\]'), re.compile(rf'\[{NUMBER}\]')]
SCORES = [
  re.compile(rf'\[\[{NUMBER},\s?{NUMBER}\]\]'),
  re.compile(rf'\[{NUMBER},\s?{NUMBER}\]'),
]

# (system prompt, user prompt) of each -> response of the judge
ChatJudge = Callable[[Sequence[tuple[str, str]]], Sequence[str]]


class Materials(NamedTuple):
  """The files of MT-Bench.

  `questions` are rows of `mt_bench_scores.read_questions`, `references` the reference answers of
  `mt_bench_scores.read_answers`, and `prompts` those of `read_prompts`.
  """

  questions: Sequence[Mapping]
  references: Answers
  prompts: Mapping[str, Mapping]


class FilledPrompt(NamedTuple):
  """A row of `judge_prompts.jsonl`, and its user prompt with all fields filled in."""

  prompt: Mapping[str, str]
  user: str


def read_prompts(path: str | Path) -> dict[str, dict]:
  """The prompts of the judge by name: rows of a `judge_prompts.jsonl`.

  Raises:
    UserError: if a row cannot be used; the message names it.
  """
  rows = json_files.read(path)
  for number, row in enumerate(rows, start=1):
    for name in ('name', 'system_prompt', 'prompt_template', 'output_format'):
      json_files.field(path, number, row, name, str)
  return {row['name']: row for row in rows}


def grade(
  judge: ChatJudge, materials: Materials, answers: Mapping[str, Answers], name: str
) -> list[dict]:
  """Single mode: a score for each turn of each policy's answers.

  Args:
    judge: the language model.
    materials: questions, references and prompts.
    answers: policy -> its answers, of `mt_bench_scores.read_answers`.
    name: of the judge.

  Raises:
    UserError: if an answer, a reference answer or a prompt is missing.
  """

  def fill(question, turn, policy):
    sides = {'answer': _turns(answers[policy], policy, question)}
    return _fill(materials, SINGLE, question, turn, sides)

  matches = [
    (question, turn, policy, fill(question, turn, policy))
    for question, turn in _rounds(materials.questions)
    for policy in answers
  ]
  texts = judge([(filled.prompt['system_prompt'], filled.user) for *_, filled in matches])
  return [
    {
      'question_id': question['question_id'],
      'model': policy,
      'judge': [name, filled.prompt['name']],
      'user_prompt': filled.user,
      'judgment': text,
      'score': parse_score(text),
      'turn': turn,
      'tstamp': time.time(),
    }
    for (question, turn, policy, filled), text in zip(matches, texts, strict=True)
  ]


def compare(
  judge: ChatJudge, materials: Materials, answers: Mapping[str, Answers], name: str
) -> list[dict]:
  """Pairwise mode: the better answer of each two policies, for each turn, in both orders.

  Args:
    judge: the language model.
    materials: questions, references and prompts.
    answers: policy -> its answers, of `mt_bench_scores.read_answers`.
    name: of the judge.

  Raises:
    UserError: if an answer, a reference answer or a prompt is missing.
  """

  def fill(question, turn, first, second):
    sides = {
      'answer_a': _turns(answers[first], first, question),
      'answer_b': _turns(answers[second], second, question),
    }
    return _fill(materials, PAIR, question, turn, sides)

  matches = [
    (question, turn, pair, fill(question, turn, *pair), fill(question, turn, *pair[::-1]))
    for question, turn in _rounds(materials.questions)
    for pair in combinations(answers, 2)
  ]
  shown = [one for *_, first, second in matches for one in (first, second)]
  texts = judge([(one.prompt['system_prompt'], one.user) for one in shown])
  won = [
    parse_winner(text, one.prompt['output_format']) for one, text in zip(shown, texts, strict=True)
  ]
  return [
    {
      'question_id': question['question_id'],
      'model_1': pair[0],
      'model_2': pair[1],
      'g1_winner': won[2 * i],
      'g2_winner': SWAPPED.get(won[2 * i + 1], won[2 * i + 1]),
      'judge': [name, first.prompt['name']],
      'g1_user_prompt': first.user,
      'g1_judgment': texts[2 * i],
      'g2_user_prompt': second.user,
      'g2_judgment': texts[2 * i + 1],
      'turn': turn,
      'tstamp': time.time(),
    }
    for i, (question, turn, pair, first, second) in enumerate(matches)
  ]


def _rounds(questions) -> Iterator[tuple[Mapping, int]]:
  """Questions with the number of the judged turn: all first turns, then all second turns."""
  for turn in (1, 2):
    yield from ((question, turn) for question in questions if turn <= len(question['turns']))


def _turns(answers, name, question) -> list[str]:
  """The turns of an answer's first choice, at least as many as the question has."""
  number, count = question['question_id'], len(question['turns'])
  turns = answers[number]['choices'][0]['turns'] if number in answers else []
  if len(turns) < count:
    raise UserError(f"'{name}' has {len(turns)} of {count} answers to question {number}.")
  return turns


def _fill(materials, names, question, turn, sides) -> FilledPrompt:
  """The judge's prompt for one turn of a question."""
  needed = question['category'] in WITH_REFERENCE
  name = names[needed] + ('-multi-turn' if turn == 2 else '')
  if name not in materials.prompts:
    raise UserError(
      f"there is no prompt '{name}' for the judge; there are {sorted(materials.prompts)}."
    )
  prompt = materials.prompts[name]
  fields = {}
  if needed:
    reference = _turns(materials.references, 'the reference', question)
    fields |= {f'ref_answer_{i}': text for i, text in enumerate(reference, start=1)}
  for side, turns in {'question': question['turns'], **sides}.items():
    if turn == 1:
      fields[side] = turns[0]
    fields |= {f'{side}_{i}': text for i, text in enumerate(turns[:turn], start=1) if turn == 2}
  try:
    return FilledPrompt(prompt, prompt['prompt_template'].format(**fields))
  except (KeyError, IndexError, ValueError) as error:
    raise UserError(
      f"the prompt '{name}' has a field that cannot be filled ({error}); it may use "
      f'{", ".join(fields)}.'
    ) from None


def parse_score(text: str) -> int | float:
  """The number in the first `[[8.5]]`, else in the first `[8.5]`; `FAILED` without either."""
  found = next(filter(None, (pattern.search(text) for pattern in SCORE)), None)
  return _number(found[1]) if found else FAILED


def _number(digits: str) -> int | float:
  return float(digits) if '.' in digits else int(digits)


def parse_winner(text: str, output_format: str) -> str:
  """The verdict: `model_1` (shown first), `model_2`, `tie` or `error`.

  Args:
    text: the judge's response.
    output_format: `[[A]]`, for verdicts `[[A]]`, `[[B]]` or, a tie, `[[C]]`; or
      `[[rating_a,rating_b]]`, where scores that differ by at most `TIE` are a tie.

  Raises:
    UserError: if it is another format.
  """
  if output_format == '[[A]]':
    words = {'[[A]]': 'model_1', '[[B]]': 'model_2', '[[C]]': 'tie'}
    return next((winner for word, winner in words.items() if word in text), 'error')
  if output_format != '[[rating_a,rating_b]]':
    raise UserError(
      f"the prompt's output_format is '{output_format}'; it must be [[A]] or [[rating_a,rating_b]]."
    )
  found = next(filter(None, (pattern.search(text) for pattern in SCORES)), None)
  if not found:
    return 'error'
  first, second = map(_number, found.groups())
  if abs(first - second) <= TIE:
    return 'tie'
  return 'model_1' if first > second else 'model_2'
