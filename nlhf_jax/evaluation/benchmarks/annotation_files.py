"""Annotations of AlpacaEval from published files, matched with the outputs of the reference."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from nlhf_jax.errors import UserError
from nlhf_jax.storage import json_files


def read_annotations(path: str | Path, references: Sequence[Mapping] = ()) -> list[dict]:
  """Rows of an `annotations.json`.

  Args:
    path: the file. A row may omit `instruction` and `output_1` and have `output` in place of
      `output_2`; then `index` is the position of its reference.
    references: outputs of the reference, if it is known. Rows with the policy as `output_1` and the
      reference as `output_2` are then swapped.

  Raises:
    UserError: if a row cannot be used: a field is missing, the preference is not in [1, 2], 0, null
      or NaN, an instruction occurs twice or is none of the reference's, the reference's response is
      that of another policy, or the policy changes. The message names the row.
  """
  rows = [
    _complete(path, number, row, references)
    for number, row in enumerate(json_files.read(path), start=1)
  ]
  for number, row in enumerate(rows, start=1):
    for name in ('instruction', 'output_1', 'output_2'):
      json_files.field(path, number, row, name, str)
    value = json_files.field(path, number, row, 'preference', (float, int, type(None)))
    if not (value is None or math.isnan(value) or value == 0 or 1 <= value <= 2):
      raise UserError(
        f"{path}, row {number}: field 'preference' is {value}; it must be from 1 (the reference is "
        'better) to 2, or null for no verdict.'
      )
  if references:
    rows = match_references(path, rows, references)
  for number, row in enumerate(rows, start=1):
    for name in ('generator_1', 'generator_2'):
      if row.get(name) != rows[0].get(name):
        raise UserError(
          f"{path}, row {number}: field '{name}' is {row.get(name)!r} after "
          f'{rows[0].get(name)!r}; give each policy a file of its own.'
        )
  check_unique(path, rows)
  return rows


def _complete(path, number, row, references) -> dict:
  """The row, completed by the fields of its reference."""
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


def match_references(
  path: str | Path, rows: Sequence[Mapping], references: Sequence[Mapping]
) -> list[dict]:
  """The rows with the reference as `output_1`; some may have the sides swapped.

  Raises:
    UserError: if an instruction is none of the reference's, or its response is not.
  """
  name, matched = references[0].get('generator'), []
  outputs = {row['instruction']: row['output'].strip() for row in references}
  for number, row in enumerate(rows, start=1):
    if row['instruction'] not in outputs:
      raise UserError(
        f'{path}, row {number}: the reference has no instruction {row["instruction"]!r:.80}; give '
        'annotations of its instructions, or the reference that they belong to.'
      )
    output = outputs[row['instruction']]
    is_reference = [row[side].strip() == output for side in ('output_1', 'output_2')]
    by_name = [name is not None and row.get(f'generator_{side}') == name for side in (1, 2)]
    if is_reference == [False, True] or (all(is_reference) and by_name == [False, True]):
      row = swap_sides(row)
    elif not is_reference[0]:
      raise UserError(
        f'{path}, row {number}: neither response is that of the reference, '
        f'{name or "which has no name"} (generator_1 is {row.get("generator_1")!r}); give '
        'annotations against the same reference in config.alpaca_eval.reference.'
      )
    matched.append(row)
  return matched


def swap_sides(row: Mapping) -> dict:
  """The annotation with its two responses exchanged."""
  value = row['preference']
  swapped = {
    f'{field}_{side}': row[f'{field}_{3 - side}']
    for field in ('output', 'generator')
    for side in (1, 2)
    if f'{field}_{3 - side}' in row
  }
  judged = value is not None and value >= 1
  return {**row, **swapped, 'preference': 3 - value if judged else value}


def check_unique(path: str | Path, rows: Sequence[Mapping]) -> None:
  """Raises `UserError` that names the first row whose instruction is that of an earlier row."""
  first: dict[str, int] = {}
  for number, row in enumerate(rows, start=1):
    if first.setdefault(row['instruction'], number) != number:
      raise UserError(
        f'{path}, row {number}: its instruction is that of row {first[row["instruction"]]}; remove '
        'one of them, because difficulties are matched by position.'
      )
