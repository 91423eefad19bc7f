"""MT-Bench: how questions are answered, and the figures of judgements (arXiv 2306.05685).

Rows are those of FastChat's files (https://github.com/lm-sys/FastChat, `fastchat/llm_judge`), which
can read the files written here and vice versa. Only the first choice of an answer is judged. A
judgement that cannot be parsed has score -1, or winner `error`, and enters no figure.

`mt_bench_judge` makes the judgements. The questions, FastChat's `question.jsonl`, are not part of
this package.
"""

import math
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.generation import Message, Respond
from nlhf_jax.storage import json_files

# Sampling temperature by category; `TEMPERATURE` for all others.
TEMPERATURES = {
  'writing': 0.7,
  'roleplay': 0.7,
  'stem': 0.1,
  'humanities': 0.1,
  'extraction': 0.0,
  'math': 0.0,
  'coding': 0.0,
  'reasoning': 0.0,
  'arena-hard-200': 0.0,
}
TEMPERATURE = 0.7
FAILED = -1
SWAPPED = {'model_1': 'model_2', 'model_2': 'model_1'}

Answers = Mapping[int, Mapping]  # number of a question -> row


def read_questions(path: str | Path) -> list[dict]:
  """Rows of a `question.jsonl`: `question_id`, `category`, and one or two `turns`.

  Raises:
    UserError: if a row cannot be used, or repeats a `question_id`; the message names it.
  """
  rows = json_files.read(path)
  found: dict[int, int] = {}
  for number, row in enumerate(rows, start=1):
    question = json_files.field(path, number, row, 'question_id', int)
    if question in found:
      raise UserError(
        f'{path}, row {number}: question_id {question} is that of row {found[question]}, too; '
        'remove one row, or give it a number of its own.'
      )
    found[question] = number
    json_files.field(path, number, row, 'category', str)
    turns = json_files.field(path, number, row, 'turns', list)
    _check_turns(path, number, turns)
    if len(turns) > 2:
      raise UserError(
        f"{path}, row {number}: field 'turns' has {len(turns)} turns, but MT-Bench judges two; "
        'remove the others.'
      )
  return rows


def read_answers(path: str | Path) -> dict[int, dict]:
  """Rows of a `model_answer/POLICY.jsonl` or `reference_answer/JUDGE.jsonl`, by question.

  If a question has several rows, the last one is used.

  Raises:
    UserError: if a row cannot be used; the message names it.
  """
  answers = {}
  for number, row in enumerate(json_files.read(path), start=1):
    choices = json_files.field(path, number, row, 'choices', list)
    if not choices or not isinstance(choices[0], dict):
      raise UserError(f"{path}, row {number}: field 'choices' has no answer.")
    _check_turns(path, number, json_files.field(path, number, choices[0], 'turns', list))
    answers[json_files.field(path, number, row, 'question_id', int)] = row
  return answers


def _check_turns(path, number, turns) -> None:
  if not turns or not all(isinstance(turn, str) for turn in turns):
    raise UserError(f"{path}, row {number}: field 'turns' must be a list of texts.")


def failed(judgement: Mapping) -> bool:
  """Whether the verdict of a judgement could not be parsed."""
  if 'score' in judgement:
    return judgement['score'] == FAILED
  return 'error' in (judgement['g1_winner'], judgement['g2_winner'])


def write(path: str | Path, rows: Iterable[Mapping]) -> None:
  """Writes answers or judgements, sorted by question."""
  json_files.write_lines(path, sorted(rows, key=lambda row: row['question_id']))


def answer(
  respond: Respond, questions: Sequence[Mapping], policy: str, choices: int = 1
) -> list[dict]:
  """A policy's answers, one row per question.

  Each turn follows the earlier turns and the policy's own answers to them. Questions with the same
  temperature are answered in one batch.

  Args:
    respond: the policy; temperature 0 means greedy decoding.
    questions: rows of `read_questions`.
    policy: its name.
    choices: answers per question; the index of a choice is its seed.
  """
  by_temperature: dict[float, list[Mapping]] = {}
  for question in questions:
    temperature = TEMPERATURES.get(question['category'], TEMPERATURE)
    by_temperature.setdefault(temperature, []).append(question)
  answers: dict[int, list[list[str]]] = {question['question_id']: [] for question in questions}
  for temperature, group in by_temperature.items():
    for seed in range(choices):
      texts = _converse(respond, [question['turns'] for question in group], temperature, seed)
      for question, turns in zip(group, texts, strict=True):
        answers[question['question_id']].append(turns)
  return [
    {
      'question_id': number,
      'answer_id': uuid.uuid5(uuid.NAMESPACE_OID, f'{policy}\n{number}\n{chosen}').hex,
      'model_id': policy,
      'choices': [{'index': index, 'turns': turns} for index, turns in enumerate(chosen)],
      'tstamp': time.time(),
    }
    for number, chosen in answers.items()
  ]


def _converse(respond, questions, temperature, seed) -> list[list[str]]:
  """The answers to each list of user turns."""
  conversations: list[list[Message]] = [[] for _ in questions]
  for turn in range(max(map(len, questions))):
    active = [i for i, turns in enumerate(questions) if turn < len(turns)]
    for i in active:
      conversations[i].append({'role': 'user', 'content': questions[i][turn]})
    texts = respond([conversations[i] for i in active], temperature, seed)
    for i, text in zip(active, texts, strict=True):
      conversations[i].append({'role': 'assistant', 'content': text})
  return [
    [message['content'] for message in conversation if message['role'] == 'assistant']
    for conversation in conversations
  ]


def summarise(judgements: Sequence[Mapping], questions: Sequence[Mapping]) -> dict[str, dict]:
  """Mean scores of each policy, best first, over the judgements that have one; NaN without any.

  Args:
    judgements: rows of a `model_judgment/JUDGE_single.jsonl`, with equal weights.
    questions: to look up categories.

  Returns:
    policy -> `average`, by `turns`, by `categories`, by `categories_of_turns` (turn -> category ->
    score), and how many were `judged` and `failed`.
  """
  category = {question['question_id']: question['category'] for question in questions}
  for number, row in enumerate(judgements, start=1):
    if row['question_id'] not in category:
      raise UserError(
        f'row {number} of the judgements is of question {row["question_id"]}, which is not among '
        'the questions; give the question file that was answered.'
      )
  found = {}
  for policy in dict.fromkeys(row['model'] for row in judgements):
    rows = [row for row in judgements if row['model'] == policy]
    judged = [row for row in rows if not failed(row)]
    in_category = lambda row: category[row['question_id']]
    turns = _grouped(judged, lambda row: row['turn'])
    found[policy] = {
      'average': _mean(judged) if judged else math.nan,
      'turns': {turn: _mean(of_turn) for turn, of_turn in turns.items()},
      'categories': {name: _mean(some) for name, some in _grouped(judged, in_category).items()},
      'categories_of_turns': {
        turn: {name: _mean(some) for name, some in _grouped(of_turn, in_category).items()}
        for turn, of_turn in turns.items()
      },
      'judged': len(judged),
      'failed': len(rows) - len(judged),
    }
  return _best_first(found, 'average')


def _best_first(found, by) -> dict[str, dict]:
  """Sorted by a figure, descending; NaN comes last."""
  place = lambda item: (math.isnan(item[1][by]), -item[1][by])
  return dict(sorted(found.items(), key=place))


def _grouped(rows, key) -> dict:
  groups: dict = {}
  for row in rows:
    groups.setdefault(key(row), []).append(row)
  return groups


def _mean(rows) -> float:
  return float(np.mean([row['score'] for row in rows]))


def count_wins(judgements: Sequence[Mapping]) -> dict[str, dict]:
  """Wins of each policy in pairwise mode, best first; a win in one order only is a tie.

  Args:
    judgements: rows of a `model_judgment/JUDGE_pair.jsonl`; those with an error in either order
      count only as `failed`.

  Returns:
    policy -> `win`, `loss`, `tie`, `failed`, rates `win_rate` and `loss_rate` of the first three,
    and `win_rate_adjusted`, where a tie is half a win; NaN where all failed.
  """
  counts: dict[str, dict[str, int]] = {}
  for row in judgements:
    winners, pair = {row['g1_winner'], row['g2_winner']}, (row['model_1'], row['model_2'])
    winner = row[winners.pop()] if len(winners) == 1 and winners <= set(SWAPPED) else None
    for policy in pair:
      outcome = 'tie' if winner is None else 'win' if policy == winner else 'loss'
      none = {'win': 0, 'loss': 0, 'tie': 0, 'failed': 0}
      counts.setdefault(policy, none)['failed' if failed(row) else outcome] += 1
  found = {}
  for policy, count in counts.items():
    total = count['win'] + count['loss'] + count['tie'] or math.nan
    found[policy] = {
      **count,
      'win_rate': count['win'] / total,
      'loss_rate': count['loss'] / total,
      'win_rate_adjusted': (count['win'] + count['tie'] / 2) / total,
    }
  return _best_first(found, 'win_rate_adjusted')
