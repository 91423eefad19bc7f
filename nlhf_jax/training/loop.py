"""The training loop, which every stage runs."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from nlhf_jax import compilation, distributed
from nlhf_jax.errors import Interrupted, UserError
from nlhf_jax.progress import progress
from nlhf_jax.storage import model_files
from nlhf_jax.structs import TrainState
from nlhf_jax.training import divergence, interrupts, optimizers
from nlhf_jax.training.checkpoints import Checkpoints
from nlhf_jax.training.dashboards import Value
from nlhf_jax.training.trackers import Metrics, read_pending

Step = Callable[[TrainState, Any, jax.Array], tuple[TrainState, Mapping[str, jax.Array]]]
# Slots -> metrics and, for the tracker alone, texts and values of histograms.
Evaluate = Callable[[Mapping[str, Any]], Mapping[str, Value]]

MOST_SKIPPED = 10  # updates in a row that are left out before training stops all the same
PERCENTILES = (50, 90, 100)  # of the norm of the gradient, between two logs
LONG_STEP = 1.0  # seconds


class Steps(NamedTuple):
  """The steps of a stage: `step(state, batch, key)` returns the next state and metrics.

  A step may donate the state, unless it raises `Interrupted` or `UserError`. Its metric `tokens`,
  if there is one, is logged as `tokens_per_second`. `begin(state, batch, key)`, if there is one,
  prepares the first state from the first batch; step n then receives batch n + 1. `close` releases
  resources of the steps.
  """

  step: Step
  begin: Callable[[TrainState, Any, jax.Array], TrainState] | None = None
  close: Callable[[], None] = lambda: None


class Schedule(NamedTuple):
  """How long a stage trains, and when it is looked at.

  Mean metrics are written every `log_every` steps. The slots are evaluated before the first step
  if `measure_start`, every `evaluate_every` steps and at the end; except for the first time a
  checkpoint is saved with it. Another one is saved at the first log that comes `checkpoint_minutes`
  after the last, unless they are 0. Training stops if a judge gives no verdict on more than the
  share `missing_verdicts` of the pairs since the last log. `learning_rate(n)`, if there is one, is
  that of the optimiser's update n.
  """

  steps: int
  evaluate_every: int
  log_every: int = 10
  checkpoint_minutes: float = 0.0
  missing_verdicts: float = 1.0
  learning_rate: Callable[[int], float] | None = None
  measure_start: bool = True

  def is_evaluated(self, done: int) -> bool:
    """Whether the slots are evaluated after `done` steps."""
    return done % self.evaluate_every == 0 or done == self.steps

  def is_logged(self, done: int) -> bool:
    """Whether metrics are written after `done` steps."""
    return self.is_evaluated(done) or done % self.log_every == 0


def train(
  state: TrainState,
  step: Step,
  batches: grain.MapDataset,
  key: jax.Array,
  *,
  stage: str,
  folder: Path,
  evaluate: Evaluate,
  schedule: Schedule,
  known: Mapping[str, float] | None = None,
) -> TrainState:
  """Trains until all steps are done, from the checkpoint in `folder` if there is one.

  Step n uses `batches[n]` and `fold_in(key, n)`, so a resumed run equals an uninterrupted one bit
  for bit. `evaluate(slots)` is added to the metrics; before the first step it is not called where
  metrics are `known`.

  Raises:
    Interrupted: on Ctrl-C or SIGTERM, or if a step or `evaluate` raises it; a checkpoint is saved
      first.
    UserError: if a number is not finite that is no missing verdict, or too many verdicts are
      missing, at the first log after it; or if a step raises it. The last state that was finite is
      saved first; with several processes, which may not all be at the same step, only where all of
      them find the same.
  """
  folder.mkdir(parents=True, exist_ok=True)
  checkpoints, steps = Checkpoints(folder / 'checkpoints'), schedule.steps
  with contextlib.closing(checkpoints):
    state = checkpoints.restore(state)
    first = int(state.step)
    if first >= steps and not read_pending(folder, first):
      return state
    metrics = Metrics(folder, stage, first)
    recorder = _Recorder(stage, schedule, checkpoints, metrics, batches, evaluate)
    with contextlib.closing(metrics), progress(steps, stage, 'step', done=first) as bar:
      if schedule.measure_start and not first:
        recorder.record_start(state, known)
      elif metrics.pending:  # if it was stopped in an evaluation, that is made now
        recorder.finish_step(state, first)
      for number in range(first, steps):
        try:
          state, values = step(state, batches[number], jax.random.fold_in(key, number))
        except (Interrupted, UserError) as error:
          # Raised while waiting for a judge, before the update began: the state is unchanged.
          if isinstance(error, Interrupted) or jax.process_count() == 1:
            recorder.pause(state, number)
          raise
        recorder.means.add(values)
        recorder.means.limit_work_ahead()
        done = number + 1
        if record := recorder.finish_step(state, done):
          bar.set_metrics(record)
        bar.update()
        if done < steps and interrupts.stop_reached():
          recorder.pause(state, done)
          interrupts.check(f'{stage}, step {done} of {steps}')
    return state


class _Recorder:
  """Checks the steps of a stage, writes their metrics, and saves checkpoints.

  Metrics are written before the checkpoint of the same step, because metrics without a checkpoint
  are dropped on resume, while a checkpoint without its metrics would leave a gap.
  """

  def __init__(
    self,
    stage: str,
    schedule: Schedule,
    checkpoints: Checkpoints,
    metrics: Metrics,
    batches: grain.MapDataset,
    evaluate: Evaluate,
  ):
    self._stage, self._schedule, self._batches = stage, schedule, batches
    self._evaluate = evaluate
    self._checkpoints, self._metrics = checkpoints, metrics
    self.means, self._saved = _Means(metrics.pending), time.monotonic()

  def finish_step(self, state: TrainState, done: int) -> dict[str, Value] | None:
    """Writes and returns the metrics since the last call, and saves a checkpoint, if they are due.

    Raises:
      Interrupted: if the evaluation raises it. The state is saved first, and a resumed run begins
        with the evaluation.
      UserError: if a step since the last call failed, or the evaluation did. If the state was
        finite before, it is saved first.
    """
    if not self._schedule.is_logged(done):
      return None
    evaluated = self._schedule.is_evaluated(done)
    self._check_finite(state, done)
    pending = self.means.pending
    try:
      record = self._record(state, done, evaluated)
    except Interrupted:
      self.means.pending = pending
      self.pause(state, done)
      raise
    if evaluated or self.is_save_due():
      self.save(state)
    return record

  def _record(self, state: TrainState, done: int, evaluated: bool) -> dict[str, Value]:
    record = self.means.take()
    self._check_verdicts(record, done)
    if self._schedule.learning_rate:
      taken = optimizers.updates_taken(state.optimizer)
      record['learning_rate'] = self._schedule.learning_rate(max(taken - 1, 0))
    if evaluated:
      record |= self._measure(state, done)
    self._metrics.write(done, record)
    return record

  def record_start(self, state: TrainState, known: Mapping[str, float] | None) -> None:
    """Writes what is known or measured before the first step, if the stage measures anything."""
    if measured := self._measure(state, 0) if known is None else known:
      self._metrics.write(0, dict(measured))
    self.means.restart_clock()

  def _measure(self, state, done) -> Mapping[str, float]:
    try:
      measured = self._evaluate(state.slots)
    except Interrupted as stopped:
      place = f'{self._stage}, step {done} of {self._schedule.steps}'
      raise Interrupted(f'{place}, in its evaluation ({stopped})') from None
    for name, value in measured.items():
      if not isinstance(value, str | np.ndarray) and not math.isfinite(value):
        self._fail(done, f'the metric {name} is {value:g}; {divergence.DIVERGED}')
    return measured

  def pause(self, state: TrainState, done: int) -> None:
    """Saves a checkpoint, and the metrics of which no mean is taken yet.

    So the learning curve of a run that stopped here, and resumes, is that of an uninterrupted one.

    Raises:
      UserError: if a step since the last record failed.
    """
    self._check_finite(state, done)
    self._metrics.write_pending(done, self.means.fetch())
    self.save(state)

  def _check_finite(self, state: TrainState, done: int) -> None:
    if self.means.pending and int(state.nonfinite):  # waits for the device
      self._stop(state, done)

  def save(self, state: TrainState) -> None:
    """Saves a checkpoint."""
    self._checkpoints.save(state)
    self._saved = time.monotonic()
    self.means.restart_clock()

  def is_save_due(self) -> bool:
    """Whether the last checkpoint is too old; the same in every process."""
    age, minutes = time.monotonic() - self._saved, self._schedule.checkpoint_minutes
    return bool(minutes) and distributed.broadcast_from_first(age > 60 * minutes)

  def _stop(self, state: TrainState, done: int) -> None:
    """Raises the error of the first step that failed, after which the state did not change."""
    finished = int(state.step)
    pending = self.means.pending
    number = finished - (done - len(pending))  # of the failed step in `pending`
    values = {name: float(value) for name, value in distributed.fetch(pending[number]).items()}
    problem = divergence.describe_failure(state, values, self._batches[finished])
    if state.in_flight is None and not divergence.is_state_failed(state):
      self.means.pending = pending[:number]
      if number:
        self._metrics.write(finished, self.means.take())
      self.save(state)
    self._fail(finished + 1, problem)

  def _check_verdicts(self, record: Mapping[str, float], done: int) -> None:
    """Refuses too many missing verdicts, and too many updates that were left out in a row."""
    missing, most = record.get('missing_verdicts', 0.0), self._schedule.missing_verdicts
    if missing > most:
      self._fail(
        done,
        f'the judge gave no verdict on {missing:.0%} of the pairs since the last log, and more '
        f'than missing_verdicts={most:g} stop the stage; look at what the judge answers, or raise '
        'that setting',
      )
    if self.means.skipped_in_a_row >= MOST_SKIPPED:
      self._fail(
        done,
        f'{self.means.skipped_in_a_row} updates in a row had a loss or a gradient that is not '
        f'finite, and {MOST_SKIPPED} stop the stage, on_divergence=skip or not; lower '
        'learning_rate, or look for a bad row in the data',
      )

  def _fail(self, step: int, problem: str) -> None:
    raise UserError(
      f'{self._stage}, step {step} of {self._schedule.steps}: {problem}; the stage is not done, '
      f'and resumes from {self._checkpoints.describe_latest()}.'
    )


class _Means:
  """Means of metrics since they were last taken, and the time per step.

  `model_bytes_read` counts what this process has read of pretrained models so far, and
  `compiled_programs` the programs compiled so far. If it keeps growing, batches differ in
  shape, and every compilation takes time. `stage_programs` and `compile_seconds` count from the
  start of the loop.
  """

  def __init__(self, pending: Sequence[Mapping[str, float]]):
    self.pending: list[Mapping[str, jax.Array | float]] = list(pending)
    self.skipped_in_a_row = 0  # updates that were left out, up to the last one taken
    self._before = compilation.count_programs(), compilation.compile_seconds()
    self._waited = time.monotonic()
    self.restart_clock()

  def restart_clock(self) -> None:
    """Leaves the time until now out of the next means."""
    self._since = time.monotonic()

  def add(self, values: Mapping[str, jax.Array]) -> None:
    """Adds the metrics of a step, without waiting for the device."""
    self.pending.append(values)

  def limit_work_ahead(self) -> None:
    """Waits for the step before the last one, and where steps are long, for the last one too.

    So one that asks to stop does not wait for many steps that are begun already.
    """
    jax.block_until_ready(self.pending[-2:-1])
    if time.monotonic() - self._waited > LONG_STEP:
      jax.block_until_ready(self.pending[-1:])
    self._waited = time.monotonic()

  def fetch(self) -> list[dict[str, float]]:
    """The metrics added since they were last taken; waits for the device."""
    return [
      {name: float(np.asarray(value)) for name, value in record.items()} for record in self.pending
    ]

  def take(self) -> dict[str, float]:
    """Means of the metrics added since the last call; waits for the device.

    Of `gradient_norm` also percentiles; of `skipped_updates` the number. Steps whose update was
    left out have no part in the other means.
    """
    records, self.pending = self.pending, []
    columns = {
      name: np.array([np.asarray(record[name]) for record in records], float) for name in records[0]
    }
    # Read only now, when the device has finished.
    seconds = (time.monotonic() - self._since) / len(records)
    self.restart_clock()
    skipped = columns.pop('skipped_updates', np.zeros(len(records))) > 0
    for left_out in skipped:
      self.skipped_in_a_row = self.skipped_in_a_row + 1 if left_out else 0
    means = {name: _mean(name, column[~skipped]) for name, column in columns.items()}
    if 'gradient_norm' in columns and not skipped.all():
      norms = columns['gradient_norm'][~skipped]
      means |= {f'gradient_norm_p{p}': float(np.percentile(norms, p)) for p in PERCENTILES}
    if 'skipped_updates' in records[0]:
      means['skipped_updates'] = int(skipped.sum())
    if 'tokens' in means:
      means['tokens_per_second'] = means.pop('tokens') / seconds
    programs, compiling = self._before
    if read := model_files.bytes_read():
      means['model_bytes_read'] = read
    return means | {
      'seconds_per_step': seconds,
      'compiled_programs': compilation.count_programs(),
      'stage_programs': compilation.count_programs() - programs,
      'compile_seconds': compilation.compile_seconds() - compiling,
    }


def _mean(name: str, column: np.ndarray) -> float:
  """The mean of a metric; of one of a judge, over the steps on which it had a verdict."""
  known = column[~np.isnan(column)] if name in divergence.ABSTAINING else column
  return float(known.mean()) if len(known) else math.nan
