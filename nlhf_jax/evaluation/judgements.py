"""Judgements of pairs of texts, cached as JSON lines, so that no pair is judged twice.

A line is one pair in one order: the policies whose responses were shown left and right, the
probability that the judge returned, and digests of the texts. The digests are the key: the names of
policies may change.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nlhf_jax.evaluation import judge_metrics
from nlhf_jax.judges.judge import CombineOrders, TextPreference, mean_of_orders
from nlhf_jax.storage import json_lines

WRITE_EVERY = 256  # questions


class Question(NamedTuple):
  """Two responses to compare; `names` are those of the left and the right policy."""

  prompt: str
  left: str
  right: str
  names: tuple[str, str]


# Questions -> P(left > right), [n]; NaN where the judge has no verdict.
CachedJudge = Callable[[Sequence[Question]], np.ndarray]


def make_cached_judge(path: Path, judge: TextPreference) -> CachedJudge:
  """A judge that caches its judgements in a file; equal responses are a tie and never judged.

  Judgements are written before they are returned. A question without a verdict (NaN) is not cached,
  and is judged again in the next run. The file is read once: only one process may use it at a time.
  """
  cached = read_judgements(path)

  def ask(questions):
    keys = [_key(question) for question in questions]
    new = {
      key: question
      for key, question in zip(keys, questions, strict=True)
      if key not in cached and question.left != question.right
    }
    pairs = list(new.items())
    for start in range(0, len(pairs), WRITE_EVERY):
      chunk = dict(pairs[start : start + WRITE_EVERY])
      columns = zip(*((one.prompt, one.left, one.right) for one in chunk.values()), strict=True)
      values = np.asarray(judge(*map(list, columns)), float).tolist()
      judged = {key: value for key, value in zip(chunk, values, strict=True) if value == value}
      json_lines.append(path, [_row(key, chunk[key], value) for key, value in judged.items()])
      cached.update(judged)
    return np.array(
      [
        0.5 if question.left == question.right else cached.get(key, np.nan)
        for key, question in zip(keys, questions, strict=True)
      ]
    )

  return ask


def combine_judgements(
  judges: Mapping[str, CachedJudge],
  combine: Mapping[str, CombineOrders],
  rule: Callable[[np.ndarray], np.ndarray],
) -> CachedJudge:
  """The judge that a rule combines from others, each of which is asked in both orders.

  Args:
    judges: by name.
    combine: both orders of a judge, by name; the mean of those that have no entry.
    rule: payoffs P - 1/2, [M, n] -> payoff, [n]; antisymmetric.
  """

  def ask(questions):
    swapped = [Question(it.prompt, it.right, it.left, it.names[::-1]) for it in questions]
    chances = [
      combine.get(name, mean_of_orders)(judge(questions), judge(swapped))
      for name, judge in judges.items()
    ]
    return 0.5 + np.asarray(rule(np.stack(chances) - 0.5), float)

  return ask


def read_judgements(path: Path) -> dict[tuple[str, str], float]:
  """The cached judgements, by the digests of their texts; none without a file.

  If some are no judgements, the file is set aside, and only the others are used.
  """
  rows = json_lines.read_valid(path, _is_judgement, 'judgements are no probabilities')
  return {(row['prompt'], row['responses']): row['preference'] for row in rows}


def _is_judgement(row) -> bool:
  value = row.get('preference')
  texts = (row.get('prompt'), row.get('responses'))
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and 0 <= value <= 1 and all(isinstance(text, str) for text in texts)


def _key(question) -> tuple[str, str]:
  return _digest(question.prompt), _digest(question.left) + _digest(question.right)


def _digest(text) -> str:
  return hashlib.sha256(text.encode(errors='replace')).hexdigest()[:16]


def _row(key, question, value) -> dict:
  left, right = question.names
  return {'prompt': key[0], 'responses': key[1], 'left': left, 'right': right, 'preference': value}


def compare_all_pairs(
  judge: CachedJudge, prompts: Sequence[str], responses: Mapping[str, Sequence[str]]
) -> np.ndarray:
  """P(row beats column), with the row's response shown left, [n, M, M].

  Args:
    judge: of pairs of texts.
    prompts: n of them.
    responses: name of a policy -> its responses, one per prompt.
  """
  names = list(responses)
  pairs = list(permutations(range(len(names)), 2))
  questions = [
    Question(prompt, texts[i], texts[j], (names[i], names[j]))
    for prompt, texts in zip(prompts, zip(*responses.values(), strict=True), strict=True)
    for i, j in pairs
  ]
  found = np.full((len(prompts), len(names), len(names)), 0.5)
  rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
  if questions:
    found[:, rows, columns] = judge(questions).reshape(len(prompts), len(pairs))
  return found


def combine_orders(one_order: np.ndarray, combine: CombineOrders = mean_of_orders) -> np.ndarray:
  """P(row beats column) from both orders of showing the responses, [n, M, M]."""
  return combine(one_order, one_order.swapaxes(-1, -2))


def order_consistency(
  one_order: np.ndarray, responses: Mapping[str, Sequence[str]]
) -> dict[str, float]:
  """Dependence of the verdicts on the order of the responses; NaN without any pair.

  Pairs without a verdict, and pairs of equal responses, which no judge is asked about, are left
  out.

  Args:
    one_order: P(row beats column) with the row's response shown left, [n, M, M].
    responses: name of a policy -> its responses, as in `compare_all_pairs`.

  Returns:
    `consistency`, the share of pairs with the same verdict in both orders
    (`judge_metrics.same_verdict`); and `first_place`, how much being shown left adds to the win
    probability.
  """
  above = np.triu_indices(one_order.shape[1], 1)
  texts = np.array(list(responses.values()), object).T  # [n, M]
  first, second = one_order[:, *above], 1 - one_order.swapaxes(1, 2)[:, *above]
  kept = np.isfinite(first + second) & (texts[:, above[0]] != texts[:, above[1]])
  first, second = first[kept], second[kept]
  if not len(first):
    return {'consistency': float('nan'), 'first_place': float('nan')}
  return {
    'consistency': float(np.mean(judge_metrics.same_verdict(first, second))),
    'first_place': float(np.mean(first - second) / 2),
  }
