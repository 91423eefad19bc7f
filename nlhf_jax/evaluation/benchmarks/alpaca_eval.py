"""AlpacaEval 2.0: responses and judgements in the published files, and the leaderboard's figures.

Outputs and annotations are rows as the files have them (https://github.com/tatsu-lab/alpaca_eval);
fields that are not needed here stay as they are. `output_1` is the reference's response and
`output_2` the policy's; `preference` is 1 plus the probability that the policy's is the better one,
where 1.5 is a draw, and so is 0, of old.

Left out: the instructions and the reference's responses, which are not ours to give.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks import length_control
from nlhf_jax.evaluation.benchmarks.length_control import Anchors, Weights
from nlhf_jax.storage import json_files

# (instructions, first responses, second responses) -> probability that the first is the better one,
# [n]; nan where the judge gives no verdict.
TextJudge = Callable[[Sequence[str], Sequence[str], Sequence[str]], np.ndarray]


def read_outputs(path: str | Path) -> list[dict]:
  """Rows of a `model_outputs.json`: `instruction` and `output` at least.

  Raises:
    UserError: if a row cannot be used; it is named.
  """
  rows = json_files.read(path)
  for number, row in enumerate(rows, start=1):
    for name in ('instruction', 'output'):
      json_files.field(path, number, row, name, str)
  _must_differ(path, rows)
  return rows


def make_outputs(questions: Sequence[Mapping], responses: Sequence[str], policy: str) -> list[dict]:
  """Rows of a `model_outputs.json`, in the order of the questions: length control counts on it.

  Args:
    questions: rows with `instruction` and perhaps `dataset`, such as the reference's outputs.
    responses: of the policy, one a question.
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


def read_annotations(path: str | Path, references: Sequence[Mapping] = ()) -> list[dict]:
  """Rows of an `annotations.json`.

  Args:
    path: the file. A row may leave out `instruction` and `output_1` and give `output` instead of
      `output_2`; then `index` says which of the references it is of.
    references: outputs of the reference, for such rows.

  Raises:
    UserError: if a row cannot be used; it is named. A field is missing, the preference is neither
      from 1 to 2 nor 0, null or NaN, an instruction has been judged before, or the policy is
      another one.
  """
  rows = [
    _whole(path, number, row, references)
    for number, row in enumerate(json_files.read(path), start=1)
  ]
  for number, row in enumerate(rows, start=1):
    for name in ('instruction', 'output_1', 'output_2'):
      json_files.field(path, number, row, name, str)
    value = json_files.field(path, number, row, 'preference', (float, int, type(None)))
    if not (value is None or math.isnan(value) or value == 0 or 1 <= value <= 2):
      raise UserError(
        f"{path}, row {number}: field 'preference' is {value}; it must be from 1 (the reference is "
        'better) to 2, or null where there is no verdict.'
      )
    for name in ('generator_1', 'generator_2'):
      if row.get(name) != rows[0].get(name):
        raise UserError(
          f"{path}, row {number}: field '{name}' is {row.get(name)!r} after "
          f'{rows[0].get(name)!r}; give each policy a file of its own.'
        )
  _must_differ(path, rows)
  return rows


def _whole(path, number, row, references) -> dict:
  """The row with what it takes from the references."""
  if 'instruction' in row or 'index' not in row or not references:
    return row
  index = json_files.field(path, number, row, 'index', int)
  if not 0 <= index < len(references):
    raise UserError(
      f"{path}, row {number}: field 'index' is {index}; there are {len(references)} references."
    )
  kept = {name: value for name, value in row.items() if name not in ('index', 'row', 'output')}
  response = {'output_2': row['output']} if 'output' in row else {}
  reference = references[index]
  return {
    'instruction': reference['instruction'],
    'output_1': reference['output'],
    **response,
    **kept,
  }


def _must_differ(path, rows) -> None:
  first: dict[str, int] = {}
  for number, row in enumerate(rows, start=1):
    if first.setdefault(row['instruction'], number) != number:
      raise UserError(
        f'{path}, row {number}: its instruction is that of row {first[row["instruction"]]}; leave '
        'one of them out, for it would count twice and move the difficulty of all after it.'
      )


def write(path: str | Path, rows: Sequence[Mapping]) -> None:
  """Writes outputs or annotations as the published code reads them; gzipped if named `.gz`."""
  json_files.write_list(path, rows)


def annotate(
  ask: TextJudge, references: Sequence[Mapping], outputs: Sequence[Mapping], judge: str
) -> list[dict]:
  """Annotations of all outputs that have an instruction in common with the references.

  Each pair is shown once, in an order that is drawn by its instruction.

  Args:
    ask: the judge.
    references: outputs of the reference; the annotations are in their order.
    outputs: of the policy.
    judge: its name, `annotator` in the file.

  Raises:
    UserError: if outputs and references have no instruction in common.
  """
  of_policy = {row['instruction']: row for row in outputs}
  pairs = [
    (row, of_policy[row['instruction']]) for row in references if row['instruction'] in of_policy
  ]
  if not pairs:
    raise UserError('outputs and references have no instruction in common; is it the same set?')
  instructions = [reference['instruction'] for reference, _ in pairs]
  swapped = np.array([_drawn(instruction) for instruction in instructions])
  shown = [
    (own['output'], reference['output']) if swap else (reference['output'], own['output'])
    for (reference, own), swap in zip(pairs, swapped, strict=True)
  ]
  first = np.asarray(ask(instructions, *zip(*shown, strict=True)), float)
  wins = np.where(swapped, first, 1 - first)
  return [
    {
      'instruction': reference['instruction'],
      'output_1': reference['output'],
      'generator_1': reference.get('generator', 'reference'),
      'dataset': reference.get('dataset', 'alpaca_eval'),
      'output_2': own['output'],
      'generator_2': own.get('generator', 'policy'),
      'annotator': judge,
      'preference': None if math.isnan(win) else 1 + win,
    }
    for (reference, own), win in zip(pairs, wins.tolist(), strict=True)
  ]


def _drawn(instruction: str) -> bool:
  """Whether the policy's response is shown first."""
  return hashlib.sha256(instruction.encode(errors='replace')).digest()[0] % 2 == 1


def chance_of_first(log_probs: Mapping[str, float]) -> float:
  """What AlpacaEval 2.0's judge means, who answers with one token: `m` for the first response.

  Args:
    log_probs: token -> log-probability, of the likeliest tokens.

  Returns:
    p(m) / (p(m) + p(M)), where a token that is not among them has no probability; nan if both.
  """
  first, second = (math.exp(log_probs.get(token, -math.inf)) for token in 'mM')
  return first / (first + second) if first + second > 0 else math.nan


def preferences(annotations: Sequence[Mapping]) -> np.ndarray:
  """Probability that the policy's response is the better one, [n]; nan without a verdict."""
  values = np.array([row['preference'] for row in annotations], float)  # None becomes nan
  return np.where(values == 0, 1.5, values) - 1


def summarise(annotations: Sequence[Mapping]) -> dict[str, float]:
  """The leaderboard's figures, under the leaderboard's names; rates are in percent.

  Rows without a verdict are left out. Whatever is above 1.5 is a win for the policy, and a discrete
  win rate counts a win as 1, a draw as 1/2. Lengths are in characters.

  Raises:
    UserError: if no row has a verdict.
  """
  values = preferences(annotations)
  values = values[np.isfinite(values)]
  if not len(values):
    raise UserError('no annotation has a preference; was the judge ever reached?')
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
    UserError: if there are more rows than difficulties, or nothing to control for.
  """
  of_rows = _of_rows(annotations, difficulty)
  reference, policy = (annotations[0].get(f'generator_{side}') for side in (1, 2))
  if policy is not None and policy == reference:
    return Weights(0, 0, 0)
  length = [len(row['output_1']) - len(row['output_2']) for row in annotations]
  return length_control.fit(np.array(length, float), of_rows, preferences(annotations), anchors)


def length_controlled(
  annotations: Sequence[Mapping], difficulty: np.ndarray, weights: Weights
) -> dict[str, float]:
  """The leaderboard's figures of length control, in percent.

  Raises:
    UserError: if there are more rows than difficulties.
  """
  predictions = length_control.predict(weights, _of_rows(annotations, difficulty))
  mean, error = length_control.win_rate(predictions)
  return {'length_controlled_winrate': mean, 'lc_standard_error': error}


def _of_rows(annotations, difficulty) -> np.ndarray:
  """The difficulty of each row, by its *position* in the file, as the leaderboard has it.

  Where a row is missing, those after it have the difficulty of another instruction. It is a fault,
  and part of the published figures.
  """
  if len(annotations) > len(difficulty):
    raise UserError(
      f'row {len(difficulty) + 1} of the annotations is one more than there are difficulties; give '
      'annotations of that set of instructions.'
    )
  return difficulty[: len(annotations)]
