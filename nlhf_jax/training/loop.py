"""The training loop, which every stage runs."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from tqdm import tqdm

from nlhf_jax import compilation, distributed
from nlhf_jax.errors import Interrupted
from nlhf_jax.structs import TrainState
from nlhf_jax.training import interrupts
from nlhf_jax.training.checkpoints import Checkpoints
from nlhf_jax.training.trackers import Metrics

Step = Callable[[TrainState, Any, jax.Array], tuple[TrainState, Mapping[str, jax.Array]]]
Evaluate = Callable[[Mapping[str, Any]], Mapping[str, float]]


class Steps(NamedTuple):
  """The steps of a stage: `step(state, batch, key)` returns the next state and metrics.

  A step may donate the state, unless it raises `Interrupted`. Its metric `tokens`, if there is one,
  is logged as `tokens_per_second`. `begin(state, batch, key)`, if there is one, prepares the first
  state from the first batch; step n then receives batch n + 1. `close` releases resources of
  the steps.
  """

  step: Step
  begin: Callable[[TrainState, Any, jax.Array], TrainState] | None = None
  close: Callable[[], None] = lambda: None


def train(
  state: TrainState,
  step: Step,
  batches: grain.MapDataset,
  key: jax.Array,
  *,
  stage: str,
  steps: int,
  folder: Path,
  evaluate: Evaluate,
  evaluate_every: int,
  log_every: int = 10,
) -> TrainState:
  """Trains until `steps` updates are done, from the checkpoint in `folder` if there is one.

  Step n uses `batches[n]` and `fold_in(key, n)`, so a resumed run equals an uninterrupted one bit
  for bit. Mean metrics are written every `log_every` steps. Every `evaluate_every` steps, and at
  the end, `evaluate(slots)` is added to them and a checkpoint is saved.

  Raises:
    Interrupted: on Ctrl-C or SIGTERM, or if a step raises it; a checkpoint is saved first.
  """
  folder.mkdir(parents=True, exist_ok=True)
  checkpoints = Checkpoints(folder / 'checkpoints')
  with contextlib.closing(checkpoints):
    state = checkpoints.restore(state)
    first = int(state.step)
    if first >= steps:
      return state
    means, metrics = _Means(), Metrics(folder, stage, first)
    progress = tqdm(total=steps, initial=first, desc=stage, unit='step', mininterval=0.5)
    with contextlib.closing(metrics), progress as bar:
      for number in range(first, steps):
        try:
          state, values = step(state, batches[number], jax.random.fold_in(key, number))
        except Interrupted:
          # Raised while waiting for a judge, before the update began: the state is unchanged.
          _save(state, checkpoints, metrics, means, number)
          raise
        means.add(values)
        bar.update()
        done = number + 1
        evaluated = done % evaluate_every == 0 or done == steps
        logged = evaluated or done % log_every == 0
        if evaluated:
          record = _save(state, checkpoints, metrics, means, done, evaluate)
        elif logged:
          record = means.take()
          metrics.write(done, record)
        if logged:
          bar.set_postfix({name: f'{value:.3g}' for name, value in record.items()})
        if done < steps and _stop_requested(logged):
          _save(state, checkpoints, metrics, means, done)
          interrupts.check(f'{stage}, step {done} of {steps}')
    return state


def _stop_requested(synchronised: bool) -> bool:
  """Whether to stop. Several processes agree only at steps that wait for the device anyway."""
  if jax.process_count() > 1 and not synchronised:
    return False
  return distributed.any_process(interrupts.requested())


def _save(
  state: TrainState,
  checkpoints: Checkpoints,
  metrics: Metrics,
  means: '_Means',
  done: int,
  evaluate: Evaluate = lambda slots: {},
) -> dict[str, float]:
  """Writes the metrics after `done` steps, then the checkpoint; returns the metrics.

  In this order, because metrics without a checkpoint are dropped on resume, while a checkpoint
  without its metrics would leave a gap.
  """
  record = {}
  if means.pending:
    record = means.take()
    record |= evaluate(state.slots)
    metrics.write(done, record)
  checkpoints.save(state)
  means.restart_clock()
  return record


class _Means:
  """Means of metrics since they were last taken, and the time per step.

  `compiled_programs` counts the programs compiled so far. If it keeps growing, batches differ in
  shape, and every compilation takes time.
  """

  def __init__(self):
    self.pending: list[Mapping[str, jax.Array]] = []
    self.restart_clock()

  def restart_clock(self) -> None:
    """Leaves the time until now out of the next means."""
    self._since = time.monotonic()

  def add(self, values: Mapping[str, jax.Array]) -> None:
    """Adds the metrics of a step, without waiting for the device."""
    self.pending.append(values)

  def take(self) -> dict[str, float]:
    """Means of the metrics added since the last call; waits for the device."""
    records, self.pending = self.pending, []
    columns = {name: [np.asarray(record[name]) for record in records] for name in records[0]}
    means = {name: _mean(column) for name, column in columns.items()}
    # Read only now, when the device has finished.
    seconds = (time.monotonic() - self._since) / len(records)
    self.restart_clock()
    if 'tokens' in means:
      means['tokens_per_second'] = means.pop('tokens') / seconds
    return means | {'seconds_per_step': seconds, 'compiled_programs': compilation.count_programs()}


def _mean(column: Sequence[np.ndarray]) -> float:
  """The mean of the values that are not NaN, which stands for a missing judgement."""
  column = np.asarray(column, float)
  known = column[~np.isnan(column)]
  return float(known.mean()) if len(known) else float('nan')
