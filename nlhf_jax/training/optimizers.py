"""The optimiser every stage uses."""

import optax


def adamw(
  learning_rate: float, steps: int, *, warmup: int, b1: float, b2: float, decay: float, clip: float
) -> optax.GradientTransformation:
  """AdamW behind clipping by global norm; linear warm-up, linear decay to a tenth of it.

  `b1=0` turns momentum off: in a cyclic game momentum makes the last iterate orbit.
  """
  warmup = min(warmup, steps)
  rise = optax.linear_schedule(0.0, learning_rate, warmup)
  fall = optax.linear_schedule(learning_rate, learning_rate / 10, steps - warmup)
  schedule = optax.join_schedules([rise, fall], [warmup])
  return optax.chain(
    optax.clip_by_global_norm(clip), optax.adamw(schedule, b1=b1, b2=b2, weight_decay=decay)
  )
