"""The training loop: one for every stage."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
  """Takes the state to `steps` updates, going on from a checkpoint in `folder` if there is one.

  Randomness is `fold_in(key, step)` and a batch is `batches[step]`, so that a run resumed is the
  same run, bit for bit. Metrics are means over `log_every` steps (fewer, where an evaluation or an
  interruption ends the interval); but for what the step itself asks of the host, the device waits
  for it only once in as many.
  `compiled_programs` counts those compiled so far. It should soon stand still: a step that takes
  others is slow.

  Args:
    state: the state to start from where there is no checkpoint.
    step: (state, batch, key) -> (state, scalars); it may donate the state, unless it raises
      `Interrupted`. The scalar `tokens`, if there is one, is logged as `tokens_per_second`, beside
      `seconds_per_step`.
    batches: indexed by step.
    key: the stage's key.
    stage: its name, for the log.
    steps: updates in all.
    folder: where checkpoints and metrics go.
    evaluate: slot -> parameters to scalars, at every checkpoint.
    evaluate_every: steps between checkpoints.
    log_every: steps between log records.

  Raises:
    Interrupted: on Ctrl-C or SIGTERM, or where the step does, after saving a checkpoint.
  """
  folder.mkdir(parents=True, exist_ok=True)
  checkpoints = Checkpoints(folder / 'checkpoints')
  state = checkpoints.restore(state)
  first = int(state.step)
  if first >= steps:
    checkpoints.close()
    return state
  metrics = Metrics(folder, stage, first)
  pending, since = [], time.monotonic()
  try:
    with tqdm(total=steps, initial=first, desc=stage, unit='step', mininterval=0.5) as bar:
      for number in range(first, steps):
        try:
          state, values = step(state, batches[number], jax.random.fold_in(key, number))
        except Interrupted:
          # A judge that is waited for stops before the update has begun: the state is as it was.
          if pending:
            metrics.write(number, summary(pending, since))
          checkpoints.save(state)
          raise
        pending.append(values)
        bar.update()
        done = number + 1
        due = done % evaluate_every == 0 or done == steps
        logged = done % log_every == 0 or due
        if logged:
          record = summary(pending, since) | {'compiled_programs': compilation.count_programs()}
          pending, since = [], time.monotonic()
          if due:
            record |= evaluate(state.slots)
          # In this order: a record without its checkpoint is taken out again, one lost stays lost.
          metrics.write(done, record)
          if due:
            checkpoints.save(state)
            since = time.monotonic()
          bar.set_postfix({name: f'{value:.3g}' for name, value in record.items()})
        # Processes agree where they stop, but not at every step, for that waits for the device.
        asked = (logged or jax.process_count() == 1) and distributed.any_process(
          interrupts.requested()
        )
        if asked and done < steps:
          if pending:
            metrics.write(done, summary(pending, since))
          checkpoints.save(state)
          interrupts.check(f'{stage}, step {done} of {steps}')
  finally:
    metrics.close()
    checkpoints.close()
  return state


def summary(records: Sequence[Mapping[str, jax.Array]], since: float) -> dict[str, float]:
  """Means of each scalar over the records, and their pace in monotonic time `since`."""
  columns = {name: [np.asarray(record[name]) for record in records] for name in records[0]}
  means = {name: _mean(column) for name, column in columns.items()}
  # The clock is read now, when the device is known to be done.
  seconds = (time.monotonic() - since) / len(records)
  if 'tokens' in means:
    means['tokens_per_second'] = means.pop('tokens') / seconds
  return means | {'seconds_per_step': seconds}


def _mean(column: Sequence[np.ndarray]) -> float:
  """The mean of what there is; NaN is for what a judge did not say."""
  column = np.asarray(column, float)
  known = column[~np.isnan(column)]
  return float(known.mean()) if len(known) else float('nan')
