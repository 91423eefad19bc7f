"""Reads how a stage trains from its section of the config."""

import inspect
from collections.abc import Mapping
from functools import partial

import jax.numpy as jnp
from ml_collections import ConfigDict

from nlhf_jax.algorithms.algorithm import Algorithm, StepRule, always
from nlhf_jax.algorithms.catalogue import ALGORITHMS
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.specs import Training
from nlhf_jax.models import sharding
from nlhf_jax.training import optimizers
from nlhf_jax.training.loop import Schedule

ON_DIVERGENCE = ('stop', 'skip')

CHUNK = 2**22  # steps that are counted at once


def make_training(row: ConfigDict, field: str) -> Training:
  """The training of a stage, from its section `row` of the config, whose name is `field`.

  Raises:
    UserError: if a setting is wrong.
  """
  if row.algorithm not in ALGORITHMS:
    raise UserError(
      f"{field}.algorithm: there is no '{row.algorithm}' in the catalogue; use one of "
      f'{list(ALGORITHMS)}.'
    )
  least = 0 if row.algorithm == 'sft' else 1  # a pretrained model may need no fine-tuning
  if row.steps < least:
    raise UserError(f'{field}.steps={row.steps} must be at least {least}.')
  takes = list(inspect.signature(ALGORITHMS[row.algorithm]).parameters)
  if sorted(takes) != sorted(row.arguments):
    raise UserError(
      f"{field}.algorithm: '{row.algorithm}' takes {takes}, but {field}.arguments has "
      f'{list(row.arguments)}; write a config for it, like those in configs/.'
    )
  try:
    algorithm = ALGORITHMS[row.algorithm](**row.arguments)
  except UserError as error:
    raise UserError(f'{field}.arguments: {error}') from None
  check_accumulation(row, algorithm, field)
  taken = count_updates(algorithm.step, row.steps)
  try:
    optimizer = optimizers.make_optimizer(steps=max(taken, 1), **row.optimizer)
  except UserError as error:
    raise UserError(f'{field}.optimizer.{error}') from None
  if row.on_divergence not in ON_DIVERGENCE:
    raise UserError(
      f"{field}.on_divergence='{row.on_divergence}' must be one of {', '.join(ON_DIVERGENCE)}."
    )
  schedule = Schedule(
    steps=row.steps,
    evaluate_every=row.evaluate_every,
    checkpoint_minutes=row.checkpoint_minutes,
    missing_verdicts=row.missing_verdicts,
    learning_rate=partial(
      optimizers.learning_rate_at,
      peak=row.optimizer.learning_rate,
      steps=max(taken, 1),
      warmup=row.optimizer.warmup,
    ),
  )
  skip = row.on_divergence == 'skip'
  return Training(algorithm, optimizer, row.batch, row.accumulate, schedule, skip)


def count_updates(rule: StepRule, steps: int) -> int:
  """How many of the first `steps` steps the policy takes."""
  if rule is always:
    return steps
  total = 0
  for first in range(1, steps + 1, CHUNK):
    numbers = jnp.arange(first, min(first + CHUNK, steps + 1), dtype=jnp.uint32)
    total += int(jnp.sum(rule(numbers)))
  return total


def check_accumulation(row: ConfigDict, algorithm: Algorithm, field: str) -> None:
  """Refuses batches whose gradient cannot be computed in `accumulate` parts."""
  if row.batch % row.accumulate:
    raise UserError(
      f'{field}.batch={row.batch} must be a multiple of {field}.accumulate={row.accumulate}: '
      'the gradient of a batch is computed in that many equal parts.'
    )
  if row.accumulate > 1 and not algorithm.per_example:
    raise UserError(
      f"{field}.accumulate={row.accumulate}: '{row.algorithm}' compares every response with "
      'the mean of its whole batch; set accumulate=1.'
    )


def check_mesh(trainings: Mapping[str, Training]) -> None:
  """Refuses batches that the current mesh cannot split."""
  parts = sharding.example_shards()
  for field, training in trainings.items():
    rows = training.batch // training.accumulate
    if rows % parts:
      divisors = ', '.join(str(count) for count in range(1, rows + 1) if rows % count == 0)
      raise UserError(
        f'config.{field}.batch={training.batch}, in {training.accumulate} parts, cannot be split '
        f'over the {parts} devices that hold different examples (data x fsdp of config.mesh); it '
        f'can over {divisors}: change their number, or the batch.'
      )
