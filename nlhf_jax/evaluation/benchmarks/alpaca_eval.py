"""AlpacaEval 2.0: win rates of policies against a reference, in the published file formats.

Outputs and annotations are rows of AlpacaEval's files (https://github.com/tatsu-lab/alpaca_eval);
fields that are not needed here are kept unchanged. `output_1` is the reference's response and
`output_2` the policy's; `preference` is 1 plus the probability that the policy's is better: 1.5 is
a tie, and so is 0 in old files. The instructions and the reference's responses are not part of this
package.
"""

import csv
import functools
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks import length_control
from nlhf_jax.evaluation.benchmarks.annotation_files import check_unique
from nlhf_jax.evaluation.benchmarks.benchmark import (
  Benchmark,
  BenchmarkTable,
  EvaluatedPolicy,
  Judges,
)
from nlhf_jax.evaluation.benchmarks.length_control import Anchors, Weights
from nlhf_jax.evaluation.judgements import CachedJudge, Question
from nlhf_jax.judges.judge import TextPreference
from nlhf_jax.storage import json_files, json_lines

LEADERBOARD = ('length_controlled_winrate', 'win_rate', 'standard_error', 'n_total', 'avg_length')
JOINED = 'difficulty by'
COLUMNS = (*LEADERBOARD, JOINED)
NOTE = (
  'Percent; higher is better. Lengths are in characters. Length control takes the difficulty of '
  'each instruction. Only published files that lack some instructions take difficulties by '
  'position: the published leaderboard does so, and its figures cannot be had otherwise.'
)


class Settings(NamedTuple):
  """Outputs of the reference and, for length control, difficulties and anchors."""

  references: Sequence[Mapping]
  difficulty: np.ndarray | None
  anchors: Anchors | None


def make(section: Mapping[str, str]) -> Benchmark | None:
  """The benchmark of the section `alpaca_eval`; None if it names no reference.

  Args:
    section: paths of the outputs of the `reference` and, for length control, of `difficulty` and
      `anchors`.

  Raises:
    UserError: if a file cannot be used.
  """
  if not section['reference']:
    return None
  references, difficulty, anchors = read_outputs(section['reference']), None, None
  if bool(section['difficulty']) != bool(section['anchors']):
    raise UserError(
      'config.alpaca_eval: length control needs both difficulty and anchors; give the other one, '
      'or neither.'
    )
  if section['difficulty']:
    difficulty = length_control.read_difficulty(section['difficulty'])
    if len(difficulty) != len(references):
      raise UserError(
        f"config.alpaca_eval.difficulty='{section['difficulty']}' has {len(difficulty)} rows, and "
        f'the reference {len(references)} outputs; they are matched row by row.'
      )
    anchors = length_control.read_anchors(section['anchors'])
  settings = Settings(references, difficulty, anchors)
  return Benchmark('alpaca_eval', run=functools.partial(run, settings), references=references)


def run(
  settings: Settings, policies: Mapping[str, EvaluatedPolicy], judges: Judges, folder: Path
) -> list[BenchmarkTable]:
  """One leaderboard per judge, and one of the published annotations, if an entry has them.

  Annotations are written to `policies/POLICY/JUDGE/annotations.json`, leaderboards to
  `leaderboard_JUDGE.csv`.
  """
  boards: dict[str, dict[str, dict]] = {}
  for name, policy in policies.items():
    if policy.annotations:
      boards.setdefault('published', {})[name] = published_figures(settings, policy.annotations)
    questions = [{'instruction': prompt} for prompt in policy.responses]
    outputs = make_outputs(questions, list(policy.responses.values()), name)
    for judge, ask in judges.pairwise.items():
      rows = annotate(make_preference(ask, name), settings.references, outputs, judge)
      write(folder / 'policies' / name / judge / 'annotations.json', rows)
      boards.setdefault(judge, {})[name] = figures(settings, rows)
  for judge, board in boards.items():
    write_leaderboard(folder / f'leaderboard_{judge}.csv', board)
  reference = settings.references[0].get('generator', 'the reference')
  return [
    BenchmarkTable(
      f'AlpacaEval 2.0 against {reference}, {judge} judge',
      NOTE,
      [column for column in COLUMNS if column in next(iter(board.values()))],
      [[name, *(row[c] for c in COLUMNS if c in row)] for name, row in sort_board(board)],
    )
    for judge, board in boards.items()
  ]


def make_preference(judge: CachedJudge, name: str) -> TextPreference:
  """A cached judge in the form that `annotate` calls; `name` is the policy, for the cache."""
  return lambda prompts, left, right: judge(
    [Question(*texts, (name, 'reference')) for texts in zip(prompts, left, right, strict=True)]
  )


def published_figures(settings: Settings, rows: Sequence[Mapping]) -> dict[str, float | str]:
  """The figures of a published file of annotations, as the published leaderboard has them.

  If the file has the order of the reference, its n rows get the first n difficulties, as on the
  leaderboard, whichever instructions the file lacks; otherwise each has that of its instruction.
  """
  places = _places(settings, rows)
  whole = len(rows) == len(settings.references)
  if settings.difficulty is None or whole or places != sorted(places):
    return figures(settings, rows)
  weights = fit_weights(rows, settings.difficulty, settings.anchors)
  controlled = length_controlled(rows, settings.difficulty, weights)
  return summarise(rows) | controlled | {JOINED: 'position'}


def figures(settings: Settings, rows: Sequence[Mapping]) -> dict[str, float | str]:
  """The leaderboard's figures, with length control by instruction if it is configured."""
  order = np.argsort(_places(settings, rows))
  rows = [rows[place] for place in order]  # the folds of length control depend on the order
  if settings.difficulty is None:
    return summarise(rows)
  difficulty = settings.difficulty[_places(settings, rows)]
  weights = fit_weights(rows, difficulty, settings.anchors)
  return summarise(rows) | length_controlled(rows, difficulty, weights) | {JOINED: 'instruction'}


def _places(settings, rows) -> list[int]:
  """The position of each row's instruction among the references."""
  place = {row['instruction']: number for number, row in enumerate(settings.references)}
  return [place[row['instruction']] for row in rows]


def sort_board(board: Mapping[str, Mapping]) -> list[tuple[str, Mapping]]:
  """Sorts the policies, best first."""
  by = next(key for key in LEADERBOARD if key in next(iter(board.values())))
  return sorted(board.items(), key=lambda item: -item[1][by])


def write_leaderboard(path: Path, board: Mapping[str, Mapping]) -> None:
  """Writes a leaderboard in AlpacaEval's format: CSV, the first column without a name."""
  text = io.StringIO()
  columns = [column for column in next(iter(board.values())) if column != JOINED]
  table = csv.writer(text, lineterminator='\n')
  table.writerow(['', *columns])
  table.writerows([name, *(row[column] for column in columns)] for name, row in sort_board(board))
  with json_lines.atomic_write(path) as draft:
    draft.write_text(text.getvalue())


def read_outputs(path: str | Path) -> list[dict]:
  """Rows of a `model_outputs.json`: `instruction` and `output` at least.

  Raises:
    UserError: if a row cannot be used; the message names it.
  """
  rows = json_files.read(path)
  for number, row in enumerate(rows, start=1):
    for name in ('instruction', 'output'):
      json_files.field(path, number, row, name, str)
  check_unique(path, rows)
  return rows


def make_outputs(questions: Sequence[Mapping], responses: Sequence[str], policy: str) -> list[dict]:
  """Rows of a `model_outputs.json`, in the order of the questions, as length control needs them.

  Args:
    questions: rows with `instruction` and optionally `dataset`, such as the reference's outputs.
    responses: of the policy, one per question.
    policy: its name.
  """
  return [
    {
      'dataset': question.get('dataset', 'alpaca_eval'),
      'instruction': question['instruction'],
      'output': response,
      'generator': policy,
    }
    for question, response in zip(questions, responses, strict=True)
  ]


def write(path: str | Path, rows: Sequence[Mapping]) -> None:
  """Writes outputs or annotations, gzipped if the name ends in `.gz`."""
  json_files.write_list(path, rows)


def annotate(
  judge: TextPreference, references: Sequence[Mapping], outputs: Sequence[Mapping], name: str
) -> list[dict]:
  """Annotations of all outputs that share an instruction with the references.

  Each pair is judged once; a hash of the instruction decides which response is shown first.

  Args:
    judge: of pairs of texts.
    references: outputs of the reference; the annotations are in their order.
    outputs: of the policy.
    name: of the judge, `annotator` in the file.

  Raises:
    UserError: if outputs and references have no instruction in common.
  """
  of_policy = {row['instruction']: row for row in outputs}
  pairs = [
    (row, of_policy[row['instruction']]) for row in references if row['instruction'] in of_policy
  ]
  if not pairs:
    raise UserError(
      'outputs and references have no instruction in common; give outputs for the instructions of '
      'the reference.'
    )
  instructions = [reference['instruction'] for reference, _ in pairs]
  swapped = np.array([_policy_first(instruction) for instruction in instructions])
  shown = [
    (own['output'], reference['output']) if swap else (reference['output'], own['output'])
    for (reference, own), swap in zip(pairs, swapped, strict=True)
  ]
  first = np.asarray(judge(instructions, *zip(*shown, strict=True)), float)
  wins = np.where(swapped, first, 1 - first)
  return [
    {
      'instruction': reference['instruction'],
      'output_1': reference['output'],
      'generator_1': reference.get('generator', 'reference'),
      'dataset': reference.get('dataset', 'alpaca_eval'),
      'output_2': own['output'],
      'generator_2': own.get('generator', 'policy'),
      'annotator': name,
      'preference': None if math.isnan(win) else 1 + win,
    }
    for (reference, own), win in zip(pairs, wins.tolist(), strict=True)
  ]


def _policy_first(instruction: str) -> bool:
  """Whether the policy's response is shown first."""
  return hashlib.sha256(instruction.encode(errors='replace')).digest()[0] % 2 == 1


def preferences(annotations: Sequence[Mapping]) -> np.ndarray:
  """Probability that the policy's response is the better one, [n]; nan without a verdict."""
  values = np.array([row['preference'] for row in annotations], float)  # None becomes nan
  return np.where(values == 0, 1.5, values) - 1


def summarise(annotations: Sequence[Mapping]) -> dict[str, float]:
  """The leaderboard's figures, under the leaderboard's names; rates are in percent.

  Rows without a verdict are ignored. A preference above 1.5 is a win of the policy; the discrete
  win rate counts a win as 1 and a tie as 1/2. Lengths are in characters.

  Raises:
    UserError: if no row has a verdict.
  """
  values = preferences(annotations)
  values = values[np.isfinite(values)]
  if not len(values):
    raise UserError('no annotation has a preference; check that the judge could be reached.')
  wins, losses = int(np.sum(values > 0.5)), int(np.sum(values < 0.5))
  mean, error = length_control.win_rate(values)
  return {
    'win_rate': mean,
    'standard_error': error,
    'n_wins': wins,
    'n_wins_base': losses,
    'n_draws': len(values) - wins - losses,
    'n_total': len(values),
    'discrete_win_rate': 100 * (wins + (len(values) - wins - losses) / 2) / len(values),
    'avg_length': int(np.mean([len(row['output_2']) for row in annotations])),
  }


def fit_weights(
  annotations: Sequence[Mapping], difficulty: np.ndarray, anchors: Anchors
) -> Weights:
  """The weights of the annotated policy; those of the reference are zero by definition.

  Raises:
    UserError: if there are more rows than difficulties, or all lengths differ by the same.
  """
  of_rows = _match_difficulty(annotations, difficulty)
  reference, policy = (annotations[0].get(f'generator_{side}') for side in (1, 2))
  if policy is not None and policy == reference:
    return Weights(0, 0, 0)
  length = [len(row['output_1']) - len(row['output_2']) for row in annotations]
  return length_control.fit(np.array(length, float), of_rows, preferences(annotations), anchors)


def length_controlled(
  annotations: Sequence[Mapping], difficulty: np.ndarray, weights: Weights
) -> dict[str, float]:
  """The length-controlled win rate of the leaderboard and its standard error, in percent.

  Raises:
    UserError: if there are more rows than difficulties.
  """
  predictions = length_control.predict(weights, _match_difficulty(annotations, difficulty))
  mean, error = length_control.win_rate(predictions)
  return {'length_controlled_winrate': mean, 'lc_standard_error': error}


def _match_difficulty(annotations, difficulty) -> np.ndarray:
  """The difficulty of each row, matched by *position* in the file, as the leaderboard does.

  If a row is missing, all rows after it get the difficulty of another instruction. This is a bug of
  the published code, and necessary to reproduce the published figures.
  """
  if len(annotations) > len(difficulty):
    raise UserError(
      f'row {len(difficulty) + 1} of the annotations has no difficulty; give '
      'annotations of the instructions that the difficulties belong to.'
    )
  return difficulty[: len(annotations)]
