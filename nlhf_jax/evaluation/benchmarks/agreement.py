"""How well judges agree: with the labels of a benchmark, with one another, with themselves.

Verdicts are 1 or 2, the better response's number, 0 for a tie, and -1 where there is none. The
files are those of LLMBar (arXiv 2310.07641), with one label and a judge asked in both orders, and
of PandaLM (arXiv 2306.05087), with three people's labels.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Int

from nlhf_jax.errors import UserError
from nlhf_jax.storage import json_files

Verdicts = Int[np.ndarray, 'n']
NONE = -1


def read_llmbar(path: str | Path) -> list[dict]:
  """Rows of LLMBar: an instruction `input`, `output_1`, `output_2`, and `label`, 1 or 2.

  Raises:
    UserError: if a row cannot be used; it is named.
  """
  rows = json_files.read(path)
  for number, row in enumerate(rows, start=1):
    for name in ('input', 'output_1', 'output_2'):
      json_files.field(path, number, row, name, str)
    _verdict(path, number, row, 'label', (1, 2))
  return rows


def read_llmbar_verdicts(path: str | Path) -> Int[np.ndarray, 'n 2']:
  """What a judge said of each pair in both orders, as numbers of the responses as they are filed.

  Args:
    path: rows with `winner_ab` and `winner_ba_mapped_back`, each '1', '2', 'TIE' or null.

  Raises:
    UserError: if a row cannot be used; it is named.
  """
  names = ('winner_ab', 'winner_ba_mapped_back')
  return np.array(
    [
      [_verdict(path, number, row, name, (1, 2, 0, NONE)) for name in names]
      for number, row in enumerate(json_files.read(path), start=1)
    ]
  )


def read_pandalm(path: str | Path) -> list[dict]:
  """Rows of PandaLM's test set: `instruction`, `input`, `response1`, `response2`, the two models in
  `cmp_key`, and labels `annotator1` to `annotator3`, 1, 2 or 0.

  Raises:
    UserError: if a row cannot be used; it is named.
  """
  rows = json_files.read(path)
  for number, row in enumerate(rows, start=1):
    for name in ('instruction', 'input', 'cmp_key'):
      json_files.field(path, number, row, name, str)
    for name in ('response1', 'response2'):
      if name not in row:
        raise UserError(f"{path}, row {number}: field '{name}' is missing; it has {sorted(row)}.")
      row[name] = str(row[name])  # the published file has some `true` that was the text True
    for person in (1, 2, 3):
      _verdict(path, number, row, f'annotator{person}', (0, 1, 2))
  return rows


def pandalm_labels(rows: Sequence[Mapping]) -> Int[np.ndarray, 'n 3']:
  """The three labels of each row."""
  return np.array([[int(row[f'annotator{person}']) for person in (1, 2, 3)] for row in rows])


def _verdict(path, number, row, name, among) -> int:
  value = json_files.field(path, number, row, name, (int, str, type(None)))
  found = {'TIE': 0, 'tie': 0, None: NONE}.get(value, value)
  found = int(found) if str(found).lstrip('-').isdecimal() else None
  if found not in among:
    allowed = ', '.join(map(str, among))
    raise UserError(f"{path}, row {number}: field '{name}' is {value!r}; it must be of {allowed}.")
  return found


def in_both_orders(verdicts: Int[np.ndarray, 'n 2'], labels: Verdicts) -> dict[str, int]:
  """LLMBar's counts.

  Returns:
    `correct_False` and `correct_True`, as filed and with the responses swapped; `correct_both`;
    `equal`, where the order makes no difference; and `n`.
  """
  right = verdicts == labels[:, None]
  return {
    'correct_False': int(right[:, 0].sum()),
    'correct_True': int(right[:, 1].sum()),
    'correct_both': int(right.all(axis=1).sum()),
    'equal': int(np.sum(verdicts[:, 0] == verdicts[:, 1])),
    'n': len(labels),
  }


def kappa(one: Verdicts, other: Verdicts) -> float:
  """Cohen's kappa: agreement beyond that of chance, 1 where it is perfect."""
  values = np.union1d(one, other)
  shares = [np.mean(verdicts[:, None] == values, axis=0) for verdicts in (one, other)]
  chance = float(np.dot(*shares))
  agreed = float(np.mean(one == other))
  return (agreed - chance) / (1 - chance) if chance < 1 else 1.0


def kappas(labels: Int[np.ndarray, 'n J']) -> dict[tuple[int, int], float]:
  """`kappa` of each two of J judges, who count from 0."""
  pairs = combinations(range(labels.shape[1]), 2)
  return {(i, j): kappa(labels[:, i], labels[:, j]) for i, j in pairs}


def majority(labels: Int[np.ndarray, 'n J']) -> Verdicts:
  """What most of J judges say; a tie where no verdict has more votes than any other."""
  votes = np.stack([np.sum(labels == verdict, axis=1) for verdict in (0, 1, 2)], axis=1)
  most = votes.max(axis=1, keepdims=True)
  alone = np.sum(votes == most, axis=1) == 1
  return np.where(alone, votes.argmax(axis=1), 0)


def scores(verdicts: Verdicts, labels: Verdicts) -> dict[str, float]:
  """A judge against labels: `accuracy`, and of those verdicts that are no tie on labels that are
  none, `decided`; `kappa`; shares of `ties` and of pairs with `none`.
  """
  both = (verdicts > 0) & (labels > 0)
  return {
    'accuracy': float(np.mean(verdicts == labels)),
    'decided': float(np.mean(verdicts[both] == labels[both])) if both.any() else float('nan'),
    'kappa': kappa(verdicts, labels),
    'ties': float(np.mean(verdicts == 0)),
    'none': float(np.mean(verdicts == NONE)),
  }
