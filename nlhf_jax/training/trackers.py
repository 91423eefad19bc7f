"""Learning curves: metrics as JSON lines, which also go to a tracker."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nlhf_jax import distributed
from nlhf_jax.errors import UserError
from nlhf_jax.storage import disk, json_lines
from nlhf_jax.training.dashboards import SafeTracker, Value

FILE = 'metrics.jsonl'
COPY = 'metrics.copy.jsonl'  # with checksums: a learning curve is not computed again
PENDING = 'metrics.pending.json'  # of steps since the last record, where training stopped


def read_curve(folder: Path, steps: int = 1) -> list[dict]:
  """The metrics of a finished stage of that many steps, in the order of the steps.

  Raises:
    UserError: if there are steps, but no metrics.
  """
  records = _read(folder)
  if steps and not records:
    raise UserError(
      f"the learning curve in '{folder}' is lost; its parameters are safe: delete the folder to "
      f'train the stage again, or put the file {FILE} back.'
    )
  return records


def read_pending(folder: Path, step: int) -> list[dict[str, float]]:
  """The metrics of each step after the last record, if training stopped after `step`."""
  paused = json_lines.read_sealed(folder / PENDING) or {}
  return paused['values'] if paused.get('step') == step else []


def _read(folder, until=math.inf) -> list[dict]:
  """The records up to a step, as the first process reads them."""
  return distributed.value_from_first(lambda: _read_here(folder, until))


def _read_here(folder, until) -> list[dict]:
  """Records that the file lacks, or has otherwise, come from its copy."""
  shown, kept = (_by_step(folder / name, until) for name in (FILE, COPY))
  if len(kept) < len(shown):  # the copy is damaged, or not yet complete
    kept = shown | kept
  records = [kept[step] for step in sorted(kept)]
  wrong = sum(shown.get(step) != record for step, record in kept.items())
  if wrong:
    problem = f'{wrong} of {len(kept)} records were lost or damaged, and come from {COPY}'
    json_lines.replace_damaged(folder / FILE, records, problem, sealed=False)
  return records


def _by_step(path, until) -> dict[int, dict]:
  records = [it for it in json_lines.read(path) if isinstance(it.get('step'), int)]
  return {record['step']: record for record in records if record['step'] <= until}


class Metrics:
  """Writes records to `metrics.jsonl`, its copy and the tracker, starting after `step`.

  Records of later steps, written before an interruption, are removed: those steps are repeated.
  """

  def __init__(self, folder: Path, stage: str, step: int):
    # What is measured before the first step is measured again.
    records = _read(folder, until=step) if step else []
    last = records[-1]['step'] if records else 0
    self.pending = read_pending(folder, step) if last < step else []
    if last + len(self.pending) < step:
      print(f'{folder / FILE}: the learning curve from step {last + 1} to {step} is lost.')
    json_lines.write(folder / COPY, records, sealed=True)
    json_lines.write(folder / FILE, records)
    self._stage, self._folder = stage, folder
    self._writes = distributed.is_first()
    self._tracker = SafeTracker(folder, step)

  def write(self, step: int, values: Mapping[str, Value]) -> None:
    """Writes the record of step `step`, the number of updates done.

    Texts and arrays go to the tracker alone, as samples and histograms.

    Raises:
      UserError: if the disk refuses it.
    """
    if not self._writes:
      return
    numbers = {
      name: value for name, value in values.items() if not isinstance(value, str | np.ndarray)
    }
    record = json_lines.to_json({'stage': self._stage, 'step': step, **numbers})
    json_lines.append(self._folder / COPY, [record])
    with disk.writing(self._folder), (self._folder / FILE).open('a') as lines:
      lines.write(json.dumps(record, allow_nan=False) + '\n')
    self._tracker.log(step, values)

  def write_pending(self, step: int, values: Sequence[Mapping[str, float]]) -> None:
    """Keeps the metrics of the steps since the last record, of which no mean is taken yet.

    Raises:
      UserError: if the disk refuses it.
    """
    with disk.writing(self._folder):
      json_lines.write_sealed(self._folder / PENDING, {'step': step, 'values': list(values)})

  def close(self) -> None:
    """Ends the run of the tracker."""
    self._tracker.close()
