"""Judgements kept as JSON lines: what has been asked once is not asked again.

A line is one question, in one order: whose response was shown on the left and whose on the right,
what the judge said, and digests of what it read, by which it is found again whatever policies are
called.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nlhf_jax.judges.judge import Both, Preference, mean
from nlhf_jax.storage import json_lines

WRITE_EVERY = 256  # questions between two writes


class Question(NamedTuple):
  """Which of two responses is better; of the names the first is that of whose is on the left."""

  prompt: str
  left: str
  right: str
  names: tuple[str, str]


CachedJudge = Callable[
  [Sequence[Question]], np.ndarray
]  # P(left > right), [n]; NaN without a verdict


def make_cached_judge(path: Path, read: Preference) -> CachedJudge:
  """A judge that remembers, in a file; a response beside itself is a draw, and not asked about.

  What it says is on the disk before it is told. No verdict, NaN, is asked for again another time.
  The file is read once: one process at a time may use it.
  """
  known = {(row['prompt'], row['responses']): row['preference'] for row in json_lines.read(path)}

  def ask(questions):
    keys = [_key(question) for question in questions]
    new = {
      key: question
      for key, question in zip(keys, questions, strict=True)
      if key not in known and question.left != question.right
    }
    pairs = list(new.items())
    for start in range(0, len(pairs), WRITE_EVERY):
      some = dict(pairs[start : start + WRITE_EVERY])
      columns = zip(*((one.prompt, one.left, one.right) for one in some.values()), strict=True)
      said = np.asarray(read(*map(list, columns)), float).tolist()
      verdicts = {key: value for key, value in zip(some, said, strict=True) if value == value}
      json_lines.append(path, [_row(key, some[key], value) for key, value in verdicts.items()])
      known.update(verdicts)
    return np.array(
      [
        0.5 if question.left == question.right else known.get(key, np.nan)
        for key, question in zip(keys, questions, strict=True)
      ]
    )

  return ask


def _key(question) -> tuple[str, str]:
  return _digest(question.prompt), _digest(question.left) + _digest(question.right)


def _digest(text) -> str:
  return hashlib.sha256(text.encode(errors='replace')).hexdigest()[:16]


def _row(key, question, said) -> dict:
  left, right = question.names
  return {'prompt': key[0], 'responses': key[1], 'left': left, 'right': right, 'preference': said}


def compare_all_pairs(
  ask: CachedJudge, prompts: Sequence[str], responses: Mapping[str, Sequence[str]]
) -> np.ndarray:
  """P(row beats column) as it was said with the row's response on the left, [n, M, M].

  Args:
    ask: the judge.
    prompts: n of them.
    responses: policy -> its responses, one a prompt.
  """
  names = list(responses)
  pairs = list(permutations(range(len(names)), 2))
  questions = [
    Question(prompt, said[i], said[j], (names[i], names[j]))
    for prompt, said in zip(prompts, zip(*responses.values(), strict=True), strict=True)
    for i, j in pairs
  ]
  found = np.full((len(prompts), len(names), len(names)), 0.5)
  rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
  if questions:
    found[:, rows, columns] = ask(questions).reshape(len(prompts), len(pairs))
  return found


def combine_orders(shown: np.ndarray, both: Both = mean) -> np.ndarray:
  """P(row beats column), what the judge makes of both orders."""
  return both(shown, shown.swapaxes(-1, -2))


def order_consistency(shown: np.ndarray) -> dict[str, float]:
  """How often both orders have the same winner, a draw in one counting half, and how much more the
  left response wins than the right one, from what was `shown`, [n, M, M]."""
  above = np.triu_indices(shown.shape[1], 1)
  first, second = shown[:, *above], 1 - shown.swapaxes(1, 2)[:, *above]
  heard = np.isfinite(first + second)
  first, second = first[heard], second[heard]
  alike = (1 + np.sign(first - 0.5) * np.sign(second - 0.5)) / 2
  return {
    'consistency': float(np.mean(alike)) if len(alike) else float('nan'),
    'first_place': float(np.mean(first - second) / 2) if len(alike) else float('nan'),
  }
