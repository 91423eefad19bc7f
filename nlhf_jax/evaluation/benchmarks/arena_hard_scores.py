"""Arena-Hard: its published files, and the figures of its leaderboard (arXiv 2406.11939).

Rows are those of https://github.com/lmarena/arena-hard-auto since April 2025: `question.jsonl`,
`model_answer/MODEL.jsonl` and `model_judgment/JUDGE/MODEL.jsonl`. In the first game of a judgement
the baseline is assistant A, in the second one it is B. None of these files is part of this package.
Style control is left out: it needs the tokenizer of a closed model.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nlhf_jax.errors import UserError
from nlhf_jax.judges.verdicts import final_part
from nlhf_jax.storage import json_files

WEIGHT = 3  # battles that a verdict such as A>>B counts as
ROUNDS = 100  # of the bootstrap
QUANTILES = (0.05, 0.95)
# Verdict -> battles won by assistant A: one, or `WEIGHT` of them.
LABELS = {
  **{'A>B': [1.0], 'B<A': [1.0], 'A>>B': [1.0] * WEIGHT, 'B<<A': [1.0] * WEIGHT},
  **{'B>A': [0.0], 'A<B': [0.0], 'B>>A': [0.0] * WEIGHT, 'A<<B': [0.0] * WEIGHT},
  **{'A=B': [0.5], 'B=A': [0.5]},
}
PATTERNS = (re.compile(r'\[\[([AB<>=]+)\]\]'), re.compile(r'\[([AB<>=]+)\]'))
OLD = "it has the layout of before April 2025 ('question_id'); download the newest files"


def read_questions(path: str | Path) -> list[dict]:
  """Rows of a `question.jsonl`: `uid`, `category` and `prompt`.

  Raises:
    UserError: if a row cannot be used, or repeats a `uid`; the message names it.
  """
  rows = _read_rows(path, ('uid', 'category', 'prompt'))
  first: dict[str, int] = {}
  for number, row in enumerate(rows, start=1):
    if first.setdefault(row['uid'], number) != number:
      raise UserError(
        f'{path}, row {number}: uid {row["uid"]!r:.60} is that of row {first[row["uid"]]}, too; '
        'remove one of them.'
      )
  return rows


def read_answers(path: str | Path) -> tuple[str, dict[str, str]]:
  """The model of a `model_answer/MODEL.jsonl`, and its answers by `uid`.

  Raises:
    UserError: if a row cannot be used, repeats a `uid`, or is of another model.
  """
  answers: dict[str, str] = {}
  rows = _read_rows(path, ('uid', 'model'))
  for number, row in enumerate(rows, start=1):
    if row['model'] != rows[0]['model']:
      raise UserError(
        f"{path}, row {number}: field 'model' is {row['model']!r:.60} after "
        f'{rows[0]["model"]!r:.60}; give each model a file of its own.'
      )
    messages = json_files.field(path, number, row, 'messages', list)
    last = messages[-1] if messages and isinstance(messages[-1], Mapping) else {}
    content = last.get('content')
    text = content.get('answer') if isinstance(content, Mapping) else content
    if last.get('role') != 'assistant' or not isinstance(text, str):
      raise UserError(
        f"{path}, row {number}: field 'messages' must end with a message of the assistant whose "
        "content is a text or {'answer': text}."
      )
    if row['uid'] in answers:
      raise UserError(
        f'{path}, row {number}: uid {row["uid"]!r:.60} was answered before; remove one answer.'
      )
    answers[row['uid']] = text
  return rows[0]['model'], answers


def read_judgements(path: str | Path) -> list[dict]:
  """Rows of a `model_judgment/JUDGE/MODEL.jsonl`.

  Raises:
    UserError: if a row cannot be used, or judges a question for the second time.
  """
  rows = _read_rows(path, ('uid', 'category', 'judge', 'model', 'baseline'))
  seen: dict[tuple, int] = {}
  for number, row in enumerate(rows, start=1):
    games = json_files.field(path, number, row, 'games', list)
    if len(games) != 2:
      raise UserError(
        f"{path}, row {number}: field 'games' has {len(games)} games; there must be two, one for "
        'each order.'
      )
    for game in games:
      _check_game(path, number, game)
    key = (row['uid'], row['judge'], row['model'])
    if seen.setdefault(key, number) != number:
      raise UserError(
        f'{path}, row {number}: the question of row {seen[key]} is judged again; remove one row.'
      )
  return rows


def _check_game(path, number, game) -> None:
  if game is None:
    return
  score = game.get('score', '') if isinstance(game, Mapping) else ''
  if score is not None and (not isinstance(score, str) or score not in LABELS):
    raise UserError(
      f"{path}, row {number}: a game's score is {score!r:.60}; it must be one of "
      f'{", ".join(LABELS)}, or null for no verdict.'
    )


def _read_rows(path, names) -> list[dict]:
  rows = json_files.read(path)
  for number, row in enumerate(rows, start=1):
    if 'uid' not in row and 'question_id' in row:
      raise UserError(f'{path}, row {number}: {OLD}.')
    for name in names:
      json_files.field(path, number, row, name, str)
  return rows


def read_verdict(text: str) -> str | None:
  """The last verdict in a judge's answer, such as `A>>B`, as published; None without one.

  Labels in double brackets come before those in single ones. What a model thinks before its answer
  is left out.
  """
  for pattern in PATTERNS:
    found = pattern.findall(final_part(text).upper())
    if found:
      return found[-1] if found[-1] in LABELS else None
  return None


def failed(row: Mapping) -> bool:
  """Whether a game of a judgement has no verdict; then neither counts."""
  return any(game is None or game['score'] is None for game in row['games'])


def battles(row: Mapping) -> list[float]:
  """The battles of a judgement, 1 for those that the model won, 1/2 for ties."""
  first, second = (LABELS[game['score']] for game in row['games'])
  return [*second, *(1 - won for won in first)]


def leaderboard(rows: Sequence[Mapping], seed: int) -> dict[str, dict[str, float]]:
  """Model -> its figures, best first, over judgements of one category and one judge.

  `score` is the mean over the battles, in percent, a verdict such as A>>B counted three times;
  `low` and `high` are the 5 % and 95 % quantiles of 100 bootstrap means over battles. The published
  program prints the mean of those 100 means for the score, which differs by their noise. `judged`
  and `failed` are numbers of questions.
  """
  found, random = {}, np.random.default_rng(seed)
  for model in dict.fromkeys(row['model'] for row in rows):
    own = [row for row in rows if row['model'] == model]
    judged = [row for row in own if not failed(row)]
    won = np.array([value for row in judged for value in battles(row)])
    means = np.full(ROUNDS, np.nan)
    if len(won):
      means = np.array([random.choice(won, len(won)).mean() for _ in range(ROUNDS)])
    low, high = np.quantile(means, QUANTILES)
    found[model] = {
      'score': 100 * float(won.mean()) if len(won) else float('nan'),
      'low': 100 * float(low),
      'high': 100 * float(high),
      'judged': len(judged),
      'failed': len(own) - len(judged),
    }
  place = lambda item: (np.isnan(item[1]['score']), -item[1]['score'])
  return dict(sorted(found.items(), key=place))
