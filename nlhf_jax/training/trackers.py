"""Metrics as JSON lines and TensorBoard events."""

import json
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from nlhf_jax import distributed
from nlhf_jax.storage import json_lines


class Metrics:
  """Writes one record a call to `metrics.jsonl` and to TensorBoard, from `step` on.

  Records later than `step`, written before an interruption, are taken out: those steps come again.
  """

  def __init__(self, folder: Path, stage: str, step: int):
    path = folder / 'metrics.jsonl'
    json_lines.write(path, [record for record in json_lines.read(path) if record['step'] <= step])
    self._stage = stage
    self._writes = distributed.is_first()
    if self._writes:
      self._lines = path.open('a')
      self._board = SummaryWriter(str(folder), purge_step=step + 1)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Adds a record; `step` is the number of updates done."""
    if not self._writes:
      return
    record = json_lines.to_json({'stage': self._stage, 'step': step, **values})
    self._lines.write(json.dumps(record, allow_nan=False) + '\n')
    self._lines.flush()
    for name, value in values.items():
      self._board.add_scalar(f'{self._stage}/{name}', value, step)

  def close(self) -> None:
    """Flushes both files."""
    if self._writes:
      self._lines.close()
      self._board.close()
