"""Agreement of judges with human labels, on LLMBar, PandaLM and Auto-J.

Every judge of the evaluation compares each pair of responses in both orders. The figures are shown
beside those of a published evaluator, if the file contains its outputs, and beside the agreement
between people, if the data have several labels per pair. No policy takes part.

Data: LLMBar (arXiv 2310.07641, one label per pair), the test set of PandaLM (arXiv 2306.05087,
three labels), the pairwise test set of Auto-J (arXiv 2310.05470, one label).

A verdict is the number of the better response, 1 or 2; 0 for a tie; -1 (`MISSING`) for none.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks.benchmark import (
  Benchmark,
  BenchmarkTable,
  EvaluatedPolicy,
  Judges,
  split_list,
)
from nlhf_jax.evaluation.judgements import CachedJudge, Question
from nlhf_jax.judges.judge import CombineOrders, mean_of_orders
from nlhf_jax.storage import json_files

MISSING = -1
PEOPLE = 'people'
COLUMNS = (
  'accuracy',
  'as filed',
  'swapped',
  'in both',
  'without ties',
  'kappa',
  'ties',
  'consistency',
  'missing',
)
NOTE = (
  'Accuracy is the share of pairs on which the judge, from both orders together, has the verdict '
  'of the label (the majority, if there are several); then in the order of the file, with the '
  'responses swapped, in both orders, and on pairs where neither is a tie. Kappa is Cohen\u2019s. '
  'Consistency is the share of pairs with one verdict in both orders; pairs of equal responses are '
  'left out of it. Pairs for which the judge has no verdict are missing, and count as wrong.'
)

Verdicts = Int[np.ndarray, 'n']
Probabilities = Float[np.ndarray, 'n']


class Data(NamedTuple):
  """n labelled pairs of responses.

  `labels` [n, L] are verdicts of L people. `published` maps the names of published evaluators to
  their verdicts, numbered as in the file, in both orders, [n, 2], or as filed, [n, 1].
  """

  name: str
  prompts: Sequence[str]
  first: Sequence[str]
  second: Sequence[str]
  labels: Int[np.ndarray, 'n L']
  published: Mapping[str, Int[np.ndarray, 'n orders']] = {}


def make(section: Mapping[str, str]) -> Benchmark | None:
  """The benchmark of the section `agreement`; None if it names no files.

  Args:
    section: for each of `llmbar`, `pandalm` and `autoj` paths, separated by commas. Files of
      verdicts that PandaLM published stand beside its test set.

  Raises:
    UserError: if a file cannot be used.
  """
  data = [read_llmbar(path) for path in split_list(section['llmbar'])]
  data += read_pandalm(split_list(section['pandalm']))
  data += [read_autoj(path) for path in split_list(section['autoj'])]
  if not data:
    return None
  return Benchmark(
    'agreement',
    run=functools.partial(run, data),
    needs_policies=False,
    needs_judges=True,
    has_verdicts=all(one.published for one in data),
  )


def run(
  data: Sequence[Data], policies: Mapping[str, EvaluatedPolicy], judges: Judges, folder: Path
) -> list[BenchmarkTable]:
  """One table per file: a row for each judge, each published evaluator, and for people."""
  tables = []
  for one in data:
    labels = majority(one.labels)
    different = np.array(one.first, object) != np.array(one.second, object)
    rows = {
      name: scores(
        *compare(judge, one), labels, different, judges.combine.get(name, mean_of_orders)
      )
      for name, judge in judges.pairwise.items()
    }
    for name, verdicts in one.published.items():
      if verdicts.shape[1] == 1:
        rows[name] = scores_as_filed(verdicts[:, 0], labels)
      else:
        rows[name] = scores(*to_probabilities(verdicts), labels, np.ones(len(labels), bool))
    if one.labels.shape[1] > 1:
      rows[PEOPLE] = scores_of_people(one.labels)
    cells = [
      [name, *(row.get(column, math.nan) for column in COLUMNS)] for name, row in rows.items()
    ]
    title = f'Agreement with human labels, {one.name}, {len(labels)} pairs'
    tables.append(BenchmarkTable(title, NOTE, list(COLUMNS), cells))
  return tables


def compare(judge: CachedJudge, data: Data) -> tuple[Probabilities, Probabilities]:
  """P(first > second) with the first one shown first, and P(second > first) with the second one."""
  pairs = list(zip(data.prompts, data.first, data.second, strict=True))
  forward = judge([Question(prompt, one, two, ('1', '2')) for prompt, one, two in pairs])
  backward = judge([Question(prompt, two, one, ('2', '1')) for prompt, one, two in pairs])
  return forward, backward


def to_verdict(probability: Probabilities, winner: int = 1) -> Verdicts:
  """The verdict, given the probability that response `winner`, 1 or 2, is the better one."""
  cases = [np.isnan(probability), probability > 0.5, probability < 0.5]
  return np.select(cases, [MISSING, winner, 3 - winner], 0)


def to_probabilities(verdicts: Int[np.ndarray, 'n 2']) -> tuple[Probabilities, Probabilities]:
  """The verdicts of an evaluator in both orders, as probabilities like those of `compare`."""
  win = lambda column, winner: np.select(
    [column == winner, column == 3 - winner, column == 0], [1.0, 0.0, 0.5], np.nan
  )
  return win(verdicts[:, 0], 1), win(verdicts[:, 1], 2)


def scores(
  forward: Probabilities,
  backward: Probabilities,
  labels: Verdicts,
  different: Bool[np.ndarray, 'n'],
  combine: CombineOrders = mean_of_orders,
) -> dict[str, float]:
  """The cells of one row of the table.

  Args:
    forward: P(first response > second), with the first one shown first; NaN if missing.
    backward: P(second response > first), with the second one shown first.
    labels: the label of each pair.
    different: the pairs that count for consistency: a judge is not asked about equal responses.
    combine: merges `forward` and `backward` into P(first response > second).
  """
  verdicts = to_verdict(combine(forward, backward))
  orders = [to_verdict(forward), to_verdict(backward, winner=2)]
  right = [verdict == labels for verdict in orders]
  same = (orders[0] == orders[1])[different]
  return scores_as_filed(verdicts, labels) | {
    'as filed': float(np.mean(right[0])),
    'swapped': float(np.mean(right[1])),
    'in both': float(np.mean(right[0] & right[1])),
    'consistency': float(np.mean(same)) if len(same) else math.nan,
  }


def scores_as_filed(verdicts: Verdicts, labels: Verdicts) -> dict[str, float]:
  """The cells of an evaluator whose verdicts are known in the order of the file only."""
  decided = (verdicts > 0) & (labels > 0)
  correct = float(np.mean(verdicts[decided] == labels[decided])) if decided.any() else math.nan
  return {
    'accuracy': float(np.mean(verdicts == labels)),
    'as filed': float(np.mean(verdicts == labels)),
    'without ties': correct,
    'kappa': kappa(verdicts, labels),
    'ties': float(np.mean(verdicts == 0)),
    'missing': int(np.sum(verdicts == MISSING)),
  }


def scores_of_people(labels: Int[np.ndarray, 'n L']) -> dict[str, float]:
  """Agreement, agreement without ties and kappa, each a mean over all pairs of L people."""
  pairs = [(labels[:, i], labels[:, j]) for i, j in combinations(range(labels.shape[1]), 2)]
  both = [(one > 0) & (two > 0) for one, two in pairs]
  decided = [one[at] == two[at] for (one, two), at in zip(pairs, both, strict=True) if at.any()]
  return {
    'accuracy': float(np.mean([one == two for one, two in pairs])),
    'without ties': float(np.mean(list(map(np.mean, decided)))) if decided else math.nan,
    'kappa': float(np.mean([kappa(one, two) for one, two in pairs])),
    'ties': float(np.mean(labels == 0)),
  }


def kappa(one: Verdicts, other: Verdicts) -> float:
  """Cohen's kappa: (agreement - chance) / (1 - chance), 1 if both always have the same verdict."""
  values = np.union1d(one, other)
  shares = [np.mean(verdicts[:, None] == values, axis=0) for verdicts in (one, other)]
  chance = float(np.dot(*shares))
  agreed = float(np.mean(one == other))
  return (agreed - chance) / (1 - chance) if chance < 1 else 1.0


def majority(labels: Int[np.ndarray, 'n L']) -> Verdicts:
  """The most frequent of L labels; a tie where two are equally frequent."""
  votes = np.stack([np.sum(labels == verdict, axis=1) for verdict in (0, 1, 2)], axis=1)
  most = votes.max(axis=1, keepdims=True)
  alone = np.sum(votes == most, axis=1) == 1
  return np.where(alone, votes.argmax(axis=1), 0)


def read_llmbar(path: str | Path) -> Data:
  """A `dataset.json` of LLMBar, or a `result.json` of one of its evaluators.

  A row has an instruction `input`, `output_1`, `output_2` and a `label`, 1 or 2. In a `result.json`
  it also has `results`, a list of rounds: the last one has the evaluator's final `winner` under
  `swap = False` and `swap = True`, '1', '2', 'TIE' or null, numbered as in the file.

  Raises:
    UserError: if a row cannot be used; the message names it.
  """
  rows = json_files.read(path)
  for number, row in enumerate(rows, start=1):
    for name in ('input', 'output_1', 'output_2'):
      json_files.field(path, number, row, name, str)
  labels = [[_verdict(path, number, row, 'label', (1, 2))] for number, row in _numbered(rows)]
  published = {}
  if 'results' in rows[0]:
    winners = [_winners(path, number, row) for number, row in _numbered(rows)]
    published = {'/'.join(Path(path).absolute().parts[-3:-1]): np.array(winners)}
  columns = _columns(rows, 'input', 'output_1', 'output_2')
  return Data(f'LLMBar {_subset(path)}', *columns, np.array(labels), published)


def _subset(path) -> str:
  """The name of a subset: its folder, as in `Adversarial/Neighbor/dataset.json`, or its file."""
  whole = Path(path).absolute()
  if whole.name.startswith('result.'):  # SUBSET/evaluators/JUDGE/PROMPT/result.json
    return whole.parts[-5] if len(whole.parts) > 5 else whole.stem
  return whole.parent.name if whole.name.startswith('dataset.') else whole.name.partition('.')[0]


def _winners(path, number, row) -> list[int]:
  rounds = json_files.field(path, number, row, 'results', list)
  final = rounds[-1] if rounds else {}
  verdicts = []
  for order in ('swap = False', 'swap = True'):
    found = final.get(order) if isinstance(final, Mapping) else None
    if not isinstance(found, Mapping):
      raise UserError(f"{path}, row {number}: the last of 'results' has no '{order}'.")
    verdicts.append(_verdict(path, number, found, 'winner', (1, 2, 0, MISSING)))
  return verdicts


def read_pandalm(paths: Sequence[str | Path]) -> list[Data]:
  """PandaLM's `testset-v1.json`, and beside it files of verdicts, which belong to it.

  Raises:
    UserError: if a row cannot be used, the message names it; or if files of verdicts do not stand
      beside one test set.
  """
  found = {path: json_files.read(path) for path in paths}
  verdicts = {path: rows for path, rows in found.items() if _result_field(rows[0])}
  tests = {path: rows for path, rows in found.items() if path not in verdicts}
  if verdicts and len(tests) != 1:
    raise UserError(
      f'config.agreement.pandalm: {next(iter(verdicts))} has verdicts on a test set; name one test '
      f'set beside it (there are {len(tests)}).'
    )
  return [
    _read_pairs(path, rows)._replace(
      published=dict(_read_results(name, found, path, rows) for name, found in verdicts.items())
    )
    for path, rows in tests.items()
  ]


def _result_field(row) -> str | None:
  """The field of a row of verdicts, such as `gpt_result`; None if the row has responses."""
  names = [name for name in row if name.endswith('_result')]
  return names[0] if len(names) == 1 and 'response1' not in row else None


def _read_results(path, rows, test_path, test) -> tuple[str, Int[np.ndarray, 'n 1']]:
  """The name of an evaluator and its verdicts, matched by `idx`: 1, 2, 0 or Tie.

  PandaLM writes `garbage` for an answer that it could not read, and counts it as a tie in the
  published accuracies (0.711 of gpt-3.5-turbo); the name says how many there are.
  """
  field, found, unread = _result_field(rows[0]), {}, 0
  for number, row in _numbered(rows):
    index = json_files.field(path, number, row, 'idx', int)
    if index in found:
      raise UserError(f'{path}, row {number}: idx {index} is that of an earlier row; remove one.')
    garbage = row.get(field) == 'garbage'
    unread += garbage
    found[index] = 0 if garbage else _verdict(path, number, row, field, (0, 1, 2, MISSING))
  wanted = [json_files.field(test_path, number, row, 'idx', int) for number, row in _numbered(test)]
  if sorted(found) != sorted(wanted):
    other = sorted(set(found) ^ set(wanted))
    raise UserError(
      f'{path}: its verdicts are not those on the pairs of {test_path} (idx {other[:3]} occur in '
      'one of them only); name files that belong together.'
    )
  note = f' ({unread} unreadable, counted as ties)' if unread else ''
  name = Path(path).name.partition('.json')[0] + note
  return name, np.array([[found[index]] for index in wanted])


def _read_pairs(path, rows) -> Data:
  """PandaLM's test set: `instruction`, `input`, `response1`, `response2`, and the labels
  `annotator1` to `annotator3`, 1, 2 or 0 for a tie.
  """
  people = [f'annotator{person}' for person in (1, 2, 3)]
  prompts = []
  for number, row in _numbered(rows):
    parts = [json_files.field(path, number, row, name, str) for name in ('instruction', 'input')]
    prompts.append('\n\n'.join(filter(None, parts)))
    for name in ('response1', 'response2'):
      if name not in row:
        raise UserError(f"{path}, row {number}: field '{name}' is missing; it has {sorted(row)}.")
  labels = [
    [_verdict(path, number, row, name, (0, 1, 2)) for name in people]
    for number, row in _numbered(rows)
  ]
  # The published file has some `true` in place of the text True.
  sides = [[str(row[name]) for row in rows] for name in ('response1', 'response2')]
  return Data('PandaLM', prompts, *sides, np.array(labels))


def read_autoj(path: str | Path) -> Data:
  """Auto-J's pairwise test set: `prompt`, `response 1`, `response 2`, and `label`, 0 or 1 for the
  better response and 2 for a tie.

  Raises:
    UserError: if a row cannot be used; the message names it.
  """
  rows, names = json_files.read(path), ('prompt', 'response 1', 'response 2')
  for number, row in _numbered(rows):
    for name in names:
      json_files.field(path, number, row, name, str)
  labels = [_verdict(path, number, row, 'label', (0, 1, 2)) for number, row in _numbered(rows)]
  return Data('Auto-J', *_columns(rows, *names), np.array([1, 2, 0])[labels][:, None])


def _numbered(rows):
  return list(enumerate(rows, start=1))


def _columns(rows, *names) -> list[list[str]]:
  return [[row[name] for row in rows] for name in names]


def _verdict(path, number, row, name, allowed) -> int:
  value = json_files.field(path, number, row, name, (int, str, type(None)))
  found = {'tie': 0, 'none': MISSING}.get(str(value).lower(), value)
  found = int(found) if str(found).lstrip('-').isdecimal() else None
  if found not in allowed:
    choices = ', '.join(map(str, allowed))
    raise UserError(
      f"{path}, row {number}: field '{name}' is {value!r}; it must be one of {choices}."
    )
  return found
