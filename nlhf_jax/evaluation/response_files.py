"""Files of responses that were generated elsewhere, in one of several layouts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks import alpaca_eval, annotation_files
from nlhf_jax.storage import json_files


class FiledResponses(NamedTuple):
  """A policy's responses by prompt and, if the file has them, a published judge's annotations.

  `annotations` are rows of AlpacaEval's `annotations.json`.
  """

  responses: Mapping[str, str]
  annotations: Sequence[Mapping] = ()


def read(path: str | Path, references: Sequence[Mapping] = ()) -> dict[str | None, FiledResponses]:
  """The policies of a file by name; the name is None if the file gives none.

  A row has one of
    - `instruction` and `output`: AlpacaEval's `model_outputs.json`, named by `generator`;
    - `preference` and `output_2` or `output`: its `annotations.json`, named by `generator_2`;
    - `prompt` and `responses`, policy -> response: this package's `samples.jsonl`;
    - `prompt` and `response`.

  Args:
    path: a JSON list or JSON lines, gzipped or not.
    references: outputs of AlpacaEval's reference, for annotations that refer to them by index.

  Raises:
    UserError: if a row cannot be used; the message names it.
  """
  first = json_files.read(path)[0]
  if 'preference' in first and ('output_2' in first or 'output' in first):
    rows = annotation_files.read_annotations(path, references)
    outputs = {row['instruction']: row['output_2'] for row in rows}
    return {_name(rows[0].get('generator_2')): FiledResponses(outputs, rows)}
  if 'instruction' in first:
    rows = alpaca_eval.read_outputs(path)
    outputs = {row['instruction']: row['output'] for row in rows}
    return {_name(rows[0].get('generator')): FiledResponses(outputs)}
  if 'responses' in first:
    return _read_samples(path)
  return {None: FiledResponses(_by_prompt(path, 'response', str))}


def _name(value: object) -> str | None:
  return value if isinstance(value, str) and value else None


def _read_samples(path) -> dict[str | None, FiledResponses]:
  rows = _by_prompt(path, 'responses', dict)
  policies = list(next(iter(rows.values())))
  if not policies:
    raise UserError(f'{path}, row 1: it has no responses.')
  for number, (prompt, texts) in enumerate(rows.items(), start=1):
    for policy in policies:
      if not isinstance(texts.get(policy), str):
        raise UserError(
          f"{path}, row {number}: there is no response of '{policy}', but row 1 has one "
          f'(prompt {prompt!r:.60}); add it, or remove the policy from all rows.'
        )
  return {
    policy: FiledResponses({prompt: texts[policy] for prompt, texts in rows.items()})
    for policy in policies
  }


def _by_prompt(path, name, kind) -> dict:
  found = {}
  for number, row in enumerate(json_files.read(path), start=1):
    prompt = json_files.field(path, number, row, 'prompt', str)
    if prompt in found:
      raise UserError(f'{path}, row {number}: the prompt is that of an earlier row; remove one.')
    found[prompt] = json_files.field(path, number, row, name, kind)
  return found
