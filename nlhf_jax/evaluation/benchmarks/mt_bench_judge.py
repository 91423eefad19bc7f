"""MT-Bench's judgements: what a judge is shown, and how its word is understood.

A judge is asked in text and answers in text. Questions of mathematics, reasoning and coding are
judged with reference answers. What a judge is told is FastChat's file `judge_prompts.jsonl`, and
its own reference answers are in `reference_answer/JUDGE.jsonl`; neither is part of this package.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks.mt_bench import FAILED, SWAPPED, Answers
from nlhf_jax.storage import json_files

# Names of prompts: without and with a reference answer; those of second turns end in `-multi-turn`.
SINGLE, PAIR = ('single-v1', 'single-math-v1'), ('pair-v2', 'pair-math-v1')
WITH_REFERENCE = ('math', 'reasoning', 'coding', 'arena-hard-200')
TIE = 0.1  # two scores that differ by no more are a tie

NUMBER = r'(\d+\.?\d*)'
SCORE = [re.compile(rf'\[\[{NUMBER}\]\]'), re.compile(rf'\[{NUMBER}\]')]
SCORES = [
  re.compile(rf'\[\[{NUMBER},\s?{NUMBER}\]\]'),
  re.compile(rf'\[{NUMBER},\s?{NUMBER}\]'),
]

# (system prompt, user prompt) of each -> what the judge says
ChatJudge = Callable[[Sequence[tuple[str, str]]], Sequence[str]]


class Materials(NamedTuple):
  """What is asked, and what a judge is told and shown beside the answers.

  `questions` are of `mt_bench.read_questions`, `references` of `mt_bench.read_answers`, and
  `prompts` of `read_prompts`.
  """

  questions: Sequence[Mapping]
  references: Answers
  prompts: Mapping[str, Mapping]


class FilledPrompt(NamedTuple):
  """What a judge is shown, by a row of `judge_prompts.jsonl`."""

  prompt: Mapping[str, str]
  user: str


def read_prompts(path: str | Path) -> dict[str, dict]:
  """What the judge is told, by name: rows of a `judge_prompts.jsonl`.

  Raises:
    UserError: if a row cannot be used; it is named.
  """
  rows = json_files.read(path)
  for number, row in enumerate(rows, start=1):
    for name in ('name', 'system_prompt', 'prompt_template', 'output_format'):
      json_files.field(path, number, row, name, str)
  return {row['name']: row for row in rows}


def grade(
  ask: ChatJudge, bench: Materials, answers: Mapping[str, Answers], judge: str
) -> list[dict]:
  """Single mode: a score for each turn of each policy's answers.

  Args:
    ask: the judge.
    bench: what it is told and shown.
    answers: policy -> `mt_bench.read_answers`.
    judge: its name.

  Raises:
    UserError: if an answer, a reference answer or a prompt is missing.
  """

  def sheet(question, turn, policy):
    sides = {'answer': _turns(answers[policy], policy, question)}
    return _sheet(bench, SINGLE, question, turn, sides)

  matches = [
    (question, turn, policy, sheet(question, turn, policy))
    for question, turn in _rounds(bench.questions)
    for policy in answers
  ]
  said = ask([(sheet.prompt['system_prompt'], sheet.user) for *_, sheet in matches])
  return [
    {
      'question_id': question['question_id'],
      'model': policy,
      'judge': [judge, sheet.prompt['name']],
      'user_prompt': sheet.user,
      'judgment': text,
      'score': parse_score(text),
      'turn': turn,
      'tstamp': time.time(),
    }
    for (question, turn, policy, sheet), text in zip(matches, said, strict=True)
  ]


def compare(
  ask: ChatJudge,
  bench: Materials,
  answers: Mapping[str, Answers],
  judge: str,
  baseline: str | None = None,
) -> list[dict]:
  """Pairwise mode: which of two answers is the better one, of each pair and turn, in both orders.

  Args:
    ask: the judge.
    bench: what it is told and shown.
    answers: policy -> `mt_bench.read_answers`.
    judge: its name.
    baseline: the policy that all others are compared with; without one all play all.

  Raises:
    UserError: if an answer, a reference answer, a prompt or the baseline is missing.
  """
  if baseline is not None and baseline not in answers:
    raise UserError(f"the baseline '{baseline}' has no answers; there are {sorted(answers)}.")
  pairs = [
    (one, other) if baseline != one else (other, one)
    for one, other in combinations(answers, 2)
    if baseline in (None, one, other)
  ]

  def sheet(question, turn, first, second):
    sides = {
      'answer_a': _turns(answers[first], first, question),
      'answer_b': _turns(answers[second], second, question),
    }
    return _sheet(bench, PAIR, question, turn, sides)

  matches = [
    (question, turn, pair, sheet(question, turn, *pair), sheet(question, turn, *pair[::-1]))
    for question, turn in _rounds(bench.questions)
    for pair in pairs
  ]
  shown = [one for *_, first, second in matches for one in (first, second)]
  said = ask([(one.prompt['system_prompt'], one.user) for one in shown])
  won = [
    parse_winner(text, one.prompt['output_format']) for one, text in zip(shown, said, strict=True)
  ]
  return [
    {
      'question_id': question['question_id'],
      'model_1': pair[0],
      'model_2': pair[1],
      'g1_winner': won[2 * i],
      'g2_winner': SWAPPED.get(won[2 * i + 1], won[2 * i + 1]),
      'judge': [judge, first.prompt['name']],
      'g1_user_prompt': first.user,
      'g1_judgment': said[2 * i],
      'g2_user_prompt': second.user,
      'g2_judgment': said[2 * i + 1],
      'turn': turn,
      'tstamp': time.time(),
    }
    for i, (question, turn, pair, first, second) in enumerate(matches)
  ]


def _rounds(questions) -> Iterator[tuple[Mapping, int]]:
  """Questions with the turn that is judged: all first ones, then the second ones there are."""
  for turn in (1, 2):
    yield from ((question, turn) for question in questions if turn <= len(question['turns']))


def _turns(answers, name, question) -> list[str]:
  """The turns of an answer's first choice, as many as the question has."""
  number, count = question['question_id'], len(question['turns'])
  turns = answers[number]['choices'][0]['turns'] if number in answers else []
  if len(turns) < count:
    raise UserError(f"'{name}' has {len(turns)} of {count} answers to question {number}.")
  return turns


def _sheet(bench, names, question, turn, sides) -> FilledPrompt:
  """The prompt for this turn of a question, filled in."""
  needed = question['category'] in WITH_REFERENCE
  name = names[needed] + ('-multi-turn' if turn == 2 else '')
  if name not in bench.prompts:
    raise UserError(
      f"there is no prompt '{name}' for the judge; there are {sorted(bench.prompts)}."
    )
  prompt = bench.prompts[name]
  fields = {}
  if needed:
    told = _turns(bench.references, 'the reference', question)
    fields |= {f'ref_answer_{i}': text for i, text in enumerate(told, start=1)}
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
  """The number in the first `[[8.5]]`, or else in the first `[8.5]`; `FAILED` without either."""
  found = next(filter(None, (pattern.search(text) for pattern in SCORE)), None)
  return _number(found[1]) if found else FAILED


def _number(digits: str) -> int | float:
  return float(digits) if '.' in digits else int(digits)


def parse_winner(text: str, output_format: str) -> str:
  """`model_1`, which was shown first, `model_2`, `tie` or `error`.

  Args:
    text: what the judge said.
    output_format: `[[A]]`, where it ends with `[[A]]`, `[[B]]` or `[[C]]` for a tie, or
      `[[rating_a,rating_b]]`, where scores that differ by at most `TIE` are one.

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
