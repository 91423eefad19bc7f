"""MT-Bench: eighty questions of two turns, graded or compared by a judge (arXiv 2306.05685).

Rows are those of FastChat's files (https://github.com/lm-sys/FastChat, `fastchat/llm_judge`), which
read what is written here and the other way round. Of a question's answers the first choice is
judged; a judgement that cannot be understood has score -1, or winner `error`, and is left out of
all figures.

Here are answers and figures; `mt_bench_judge` has what lies between. Left out are the questions:
FastChat's `question.jsonl`.
"""

import math
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from nlhf_jax.errors import UserError
from nlhf_jax.storage import json_files

# How random answers are, by category; others are answered at `TEMPERATURE`.
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

Message = Mapping[str, str]  # {'role', 'content'}
# (conversations, temperature, seed) -> the next message of each
Respond = Callable[[Sequence[Sequence[Message]], float, int], Sequence[str]]
Answers = Mapping[int, Mapping]  # question -> row


def read_questions(path: str | Path) -> list[dict]:
  """Rows of a `question.jsonl`: `question_id`, `category`, and one or two `turns`.

  Raises:
    UserError: if a row cannot be used; it is named.
  """
  rows = json_files.read(path)
  for number, row in enumerate(rows, start=1):
    json_files.field(path, number, row, 'question_id', int)
    json_files.field(path, number, row, 'category', str)
    _must_be_turns(path, number, json_files.field(path, number, row, 'turns', list))
  return rows


def read_answers(path: str | Path) -> dict[int, dict]:
  """Rows of a `model_answer/POLICY.jsonl` or `reference_answer/JUDGE.jsonl`, by question.

  Of several rows of a question the last counts.

  Raises:
    UserError: if a row cannot be used; it is named.
  """
  answers = {}
  for number, row in enumerate(json_files.read(path), start=1):
    choices = json_files.field(path, number, row, 'choices', list)
    if not choices or not isinstance(choices[0], dict):
      raise UserError(f"{path}, row {number}: field 'choices' has no answer.")
    _must_be_turns(path, number, json_files.field(path, number, choices[0], 'turns', list))
    answers[json_files.field(path, number, row, 'question_id', int)] = row
  return answers


def _must_be_turns(path, number, turns) -> None:
  if not turns or not all(isinstance(turn, str) for turn in turns):
    raise UserError(f"{path}, row {number}: field 'turns' must be a list of texts.")


def read_scores(path: str | Path) -> list[dict]:
  """Rows of a `model_judgment/JUDGE_single.jsonl`.

  Raises:
    UserError: if a row cannot be used; it is named.
  """
  rows = json_files.read(path)
  for number, row in enumerate(rows, start=1):
    json_files.field(path, number, row, 'model', str)
    json_files.field(path, number, row, 'score', (float, int))
    for name in ('question_id', 'turn'):
      json_files.field(path, number, row, name, int)
  return rows


def read_pairs(path: str | Path) -> list[dict]:
  """Rows of a `model_judgment/JUDGE_pair.jsonl`.

  Raises:
    UserError: if a row cannot be used; it is named.
  """
  rows = json_files.read(path)
  for number, row in enumerate(rows, start=1):
    for name in ('model_1', 'model_2', 'g1_winner', 'g2_winner'):
      value = json_files.field(path, number, row, name, str)
      if name.endswith('winner') and value not in (*SWAPPED, 'tie', 'error'):
        raise UserError(
          f"{path}, row {number}: field '{name}' is {value!r}; it must be one of "
          f'{", ".join(SWAPPED)}, tie, error.'
        )
  return rows


def failed(judgement: Mapping) -> bool:
  """Whether a row of `read_scores` or of `read_pairs` says nothing that can be understood."""
  if 'score' in judgement:
    return judgement['score'] == FAILED
  return 'error' in (judgement['g1_winner'], judgement['g2_winner'])


def write(path: str | Path, rows: Iterable[Mapping]) -> None:
  """Writes answers, to a file called by the policy's name, or judgements; by question."""
  json_files.write_lines(path, sorted(rows, key=lambda row: row['question_id']))


def answer(
  respond: Respond, questions: Sequence[Mapping], policy: str, choices: int = 1
) -> list[dict]:
  """A policy's answers, a row a question.

  Each turn sees those before it, with the policy's own answers. Questions of one temperature are
  answered together.

  Args:
    respond: the policy. A temperature of 0 asks for the likeliest tokens.
    questions: rows of `read_questions`.
    policy: its name.
    choices: answers a question; the number of a choice is its seed.
  """
  by_temperature: dict[float, list[Mapping]] = {}
  for question in questions:
    temperature = TEMPERATURES.get(question['category'], TEMPERATURE)
    by_temperature.setdefault(temperature, []).append(question)
  said: dict[int, list[list[str]]] = {question['question_id']: [] for question in questions}
  for temperature, together in by_temperature.items():
    for seed in range(choices):
      spoken = _converse(respond, [question['turns'] for question in together], temperature, seed)
      for question, turns in zip(together, spoken, strict=True):
        said[question['question_id']].append(turns)
  return [
    {
      'question_id': number,
      'answer_id': uuid.uuid5(uuid.NAMESPACE_OID, f'{policy}\n{number}\n{chosen}').hex,
      'model_id': policy,
      'choices': [{'index': index, 'turns': turns} for index, turns in enumerate(chosen)],
      'tstamp': time.time(),
    }
    for number, chosen in said.items()
  ]


def _converse(respond, asked, temperature, seed) -> list[list[str]]:
  """The answers to each list of turns."""
  conversations: list[list[Message]] = [[] for _ in asked]
  for turn in range(max(map(len, asked))):
    going = [i for i, turns in enumerate(asked) if turn < len(turns)]
    for i in going:
      conversations[i].append({'role': 'user', 'content': asked[i][turn]})
    spoken = respond([conversations[i] for i in going], temperature, seed)
    for i, text in zip(going, spoken, strict=True):
      conversations[i].append({'role': 'assistant', 'content': text})
  return [
    [message['content'] for message in conversation if message['role'] == 'assistant']
    for conversation in conversations
  ]


def summarise(judgements: Sequence[Mapping], questions: Sequence[Mapping]) -> dict[str, dict]:
  """Mean scores of each policy, best first, over the judgements that have one; nan without any.

  Args:
    judgements: rows of `read_scores`; all of them count, however many a question has.
    questions: for their categories.

  Returns:
    policy -> `average`, by `turns`, by `categories`, by `categories_of_turns` (turn -> category ->
    score), and how many were `judged` and `failed`.
  """
  category = {question['question_id']: question['category'] for question in questions}
  for number, row in enumerate(judgements, start=1):
    if row['question_id'] not in category:
      raise UserError(
        f'row {number} of the judgements is of question {row["question_id"]}, which is not among '
        'the questions; give the file that was answered.'
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
  """Those that have a figure come before those that have none."""
  place = lambda item: (math.isnan(item[1][by]), -item[1][by])
  return dict(sorted(found.items(), key=place))


def _grouped(rows, key) -> dict:
  groups: dict = {}
  for row in rows:
    groups.setdefault(key(row), []).append(row)
  return groups


def _mean(rows) -> float:
  return float(np.mean([row['score'] for row in rows]))


def count_wins(judgements: Sequence[Mapping], baseline: str | None = None) -> dict[str, dict]:
  """Wins of each policy in pairwise mode, best first; a win in one order only is a tie.

  Args:
    judgements: rows of `read_pairs`; those with an error in either order are only `failed`.
    baseline: only pairs with this policy count, and it is left out itself.

  Returns:
    policy -> `win`, `loss`, `tie`, `failed`, rates `win_rate` and `loss_rate` of the first three,
    and `win_rate_adjusted`, where a tie is half a win; nan where all failed.
  """
  counts: dict[str, dict[str, int]] = {}
  for row in judgements:
    winners, pair = {row['g1_winner'], row['g2_winner']}, (row['model_1'], row['model_2'])
    if baseline is not None and baseline not in pair:
      continue
    winner = row[winners.pop()] if len(winners) == 1 and winners <= set(SWAPPED) else None
    for policy in pair:
      outcome = 'tie' if winner is None else 'win' if policy == winner else 'loss'
      none = {'win': 0, 'loss': 0, 'tie': 0, 'failed': 0}
      counts.setdefault(policy, none)['failed' if failed(row) else outcome] += 1
  found = {}
  for policy, count in counts.items():
    if policy != baseline:
      total = count['win'] + count['loss'] + count['tie'] or math.nan
      found[policy] = {
        **count,
        'win_rate': count['win'] / total,
        'loss_rate': count['loss'] / total,
        'win_rate_adjusted': (count['win'] + count['tie'] / 2) / total,
      }
  return _best_first(found, 'win_rate_adjusted')
