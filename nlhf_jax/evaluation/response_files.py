"""Responses that others made, in whatever of some layouts they are filed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks import alpaca_eval
from nlhf_jax.storage import json_files


class FiledResponses(NamedTuple):
  """A policy's responses by prompt, and what a published judge said of them, if it is filed too.

  `annotations` are rows of AlpacaEval's.
  """

  responses: Mapping[str, str]
  annotations: Sequence[Mapping] = ()


def read(path: str | Path, references: Sequence[Mapping] = ()) -> dict[str | None, FiledResponses]:
  """The policies of a file, by their names; None if it says none.

  A row has one of
    - `instruction` and `output`: AlpacaEval's `model_outputs.json`, named by `generator`;
    - `preference` and `output_2` or `output`: its `annotations.json`, named by `generator_2`;
    - `prompt` and `responses`, an object of policies: our `samples.jsonl`;
    - `prompt` and `response`.

  Args:
    path: a JSON list or JSON lines, gzipped or not.
    references: outputs of AlpacaEval's reference, for annotations that leave out what they have.

  Raises:
    UserError: if a row cannot be used; it is named.
  """
  first = json_files.read(path)[0]
  if 'preference' in first and ('output_2' in first or 'output' in first):
    rows = alpaca_eval.read_annotations(path, references)
    said = {row['instruction']: row['output_2'] for row in rows}
    return {_name(rows[0].get('generator_2')): FiledResponses(said, rows)}
  if 'instruction' in first:
    rows = alpaca_eval.read_outputs(path)
    said = {row['instruction']: row['output'] for row in rows}
    return {_name(rows[0].get('generator')): FiledResponses(said)}
  if 'responses' in first:
    return _samples(path)
  return {None: FiledResponses(_by_prompt(path, 'response', str))}


def _name(said: object) -> str | None:
  return said if isinstance(said, str) and said else None


def _samples(path) -> dict[str | None, FiledResponses]:
  rows = _by_prompt(path, 'responses', dict)
  policies = list(next(iter(rows.values())))
  if not policies:
    raise UserError(f'{path}, row 1: it has no responses.')
  for number, (prompt, said) in enumerate(rows.items(), start=1):
    for policy in policies:
      if not isinstance(said.get(policy), str):
        raise UserError(
          f"{path}, row {number}: there is no response of '{policy}', of which row 1 has one "
          f'(prompt {prompt!r:.60}); leave it out of all rows, or of none.'
        )
  return {
    policy: FiledResponses({prompt: said[policy] for prompt, said in rows.items()})
    for policy in policies
  }


def _by_prompt(path, name, kind) -> dict:
  found = {}
  for number, row in enumerate(json_files.read(path), start=1):
    prompt = json_files.field(path, number, row, 'prompt', str)
    if prompt in found:
      raise UserError(f'{path}, row {number}: its prompt came before; leave one of them out.')
    found[prompt] = json_files.field(path, number, row, name, kind)
  return found
