"""Optimisers, by name, and how what they do reaches parameters of 16 bits."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from nlhf_jax.errors import UserError
from nlhf_jax.ranges import AtLeastOne, BelowOne, Count, NonNegative, Positive
from nlhf_jax.structs import Params


def make_optimizer(
  name: str,
  learning_rate: Positive,
  steps: AtLeastOne,
  *,
  warmup: Count,
  b1: BelowOne,
  b2: BelowOne,
  decay: NonNegative,
  clip: Positive,
  rounding: str,
) -> optax.GradientTransformation:
  """An optimiser behind clipping by global norm; linear warm-up, linear decay to a tenth of it.

  It computes, and remembers, in float32 whatever the parameters are kept in.

  Args:
    name: `adamw`; `adafactor`, without momentum or scaling by parameters (arXiv 1804.04235);
      `rmsprop`, as PyTorch has it.
    learning_rate: at the top.
    steps: updates in all.
    warmup: updates until the learning rate is at its top.
    b1: decay of momentum; 0 turns it off: in a cyclic game it makes the last iterate orbit.
    b2: decay of the mean of squared gradients; in adafactor the most that 1 - t^-0.8 grows to.
    decay: of weights, apart from the gradient, as AdamW has it.
    clip: largest global norm of a gradient.
    rounding: what becomes of updates too small for parameters in bfloat16: `nearest` loses them,
      `stochastic` makes them in the mean, `kahan` remembers what it could not make.

  Raises:
    UserError: if a name is unknown, or momentum is asked of an optimiser that has none.
  """
  for field, value, table in (('name', name, SCALES), ('rounding', rounding, ROUNDINGS)):
    if value not in table:
      raise UserError(f"{field}='{value}' must be one of {', '.join(table)}.")
  if b1 and name != 'adamw':
    raise UserError(f'b1={b1}: {name} has no momentum; set b1=0, or use adamw.')
  warmup = min(warmup, steps)
  rise = optax.linear_schedule(0.0, learning_rate, warmup)
  fall = optax.linear_schedule(learning_rate, learning_rate / 10, steps - warmup)
  inner = optax.chain(
    optax.clip_by_global_norm(clip),
    SCALES[name](b1, b2),
    optax.add_decayed_weights(decay),
    optax.scale_by_learning_rate(optax.join_schedules([rise, fall], [warmup])),
  )
  return optax.chain(compute_in_float32(inner), ROUNDINGS[rounding]())


def adafactor(b1: float, b2: float) -> optax.GradientTransformation:
  """Gradients over the root of factored mean squares, each tensor's bounded to a mean square of 1.

  The mean squares decay by 1 - t^-0.8, which grows to `b2` at the most (arXiv 2106.04560).
  """
  del b1
  decay = lambda step, exponent: jnp.minimum(1 - (step + 1.0) ** -exponent, b2)
  return optax.chain(
    optax.scale_by_factored_rms(decay_rate=0.8, decay_rate_fn=decay), optax.clip_by_block_rms(1.0)
  )


SCALES = {
  'adamw': lambda b1, b2: optax.scale_by_adam(b1=b1, b2=b2),
  'adafactor': adafactor,
  'rmsprop': lambda b1, b2: optax.scale_by_rms(decay=b2, eps_in_sqrt=False),
}


def widen(tree: Params) -> Params:
  """Leaves of fewer bits as float32."""
  return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)


def compute_in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """The same for parameters and gradients of fewer bits; its updates are float32."""

  def update(updates, state, params):
    return inner.update(widen(updates), state, widen(params))

  return optax.GradientTransformation(lambda params: inner.init(widen(params)), update)


# --- Rounding: updates of bfloat16 parameters that can be added to them exactly ---


class Stochastic(NamedTuple):
  """How many updates were rounded: what the next one's random numbers are made of."""

  count: Int[Array, '']


class Kahan(NamedTuple):
  """What rounding has kept from each parameter so far; of those in float32, a zero."""

  errors: Params


def stochastic() -> optax.GradientTransformation:
  """Rounds each new parameter up or down, with the chances that make its mean exact."""

  def update(updates, state, params):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), state.count), len(leaves))
    rounded = jax.tree.map(
      lambda change, leaf, key: _rounded(change, leaf, partial(_up_or_down, key)),
      updates,
      params,
      jax.tree.unflatten(tree, list(keys)),
    )
    return rounded, Stochastic(state.count + 1)

  return optax.GradientTransformation(lambda params: Stochastic(jnp.zeros((), jnp.int32)), update)


def kahan() -> optax.GradientTransformation:
  """Rounds to the nearest, and adds what that has kept back to the next update."""

  def init(params):
    return Kahan(jax.tree.map(lambda x: jnp.zeros(x.shape if _small(x) else (), x.dtype), params))

  def update(updates, state, params):
    wanted = jax.tree.map(
      lambda change, leaf, error: change + error.astype(jnp.float32) if _small(leaf) else change,
      updates,
      params,
      state.errors,
    )
    done = jax.tree.map(lambda change, leaf: _rounded(change, leaf, _nearest), wanted, params)
    errors = jax.tree.map(
      lambda wanted, done, leaf, old: (wanted - done).astype(leaf.dtype) if _small(leaf) else old,
      wanted,
      done,
      params,
      state.errors,
    )
    return done, Kahan(errors)

  return optax.GradientTransformation(init, update)


ROUNDINGS = {'nearest': optax.identity, 'stochastic': stochastic, 'kahan': kahan}


def _small(leaf: Array) -> bool:
  return leaf.dtype == jnp.bfloat16


def _rounded(change: Array, leaf: Array, how: Callable[[Array], Array]) -> Array:
  """The change that takes a leaf in bfloat16 to a number in bfloat16; others as they are."""
  if not _small(leaf):
    return change
  leaf = leaf.astype(jnp.float32)
  return how(leaf + change) - leaf


def _nearest(x: Float[Array, '*shape']) -> Float[Array, '*shape']:
  # A cast to bfloat16 and back is something that XLA may take out.
  return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _up_or_down(key: Array, x: Float[Array, '*shape']) -> Float[Array, '*shape']:
  """Noise below the last bit that bfloat16 has, then what is below it is cut off."""
  noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  bits = (lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
  return lax.bitcast_convert_type(bits, jnp.float32)
