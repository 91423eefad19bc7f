"""Optimisers by name, and how their updates are rounded to parameters in bfloat16."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from nlhf_jax.errors import UserError
from nlhf_jax.models import layers
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
  """An optimiser with clipping, linear warm-up, and linear decay to a tenth of the learning rate.

  It computes in float32, and keeps its state in float32, whatever the type of the parameters.

  Args:
    name: `adamw`; `adafactor` without momentum or parameter scaling (arXiv 1804.04235); or
      `rmsprop` as in PyTorch.
    learning_rate: its maximum, reached after warm-up.
    steps: number of updates in all.
    warmup: number of updates of the warm-up.
    b1: decay of momentum; 0 for none. In a cyclic game momentum makes the last iterate orbit.
    b2: decay of the mean squared gradient; for adafactor the upper bound of 1 - t^-0.8.
    decay: decoupled weight decay.
    clip: maximum global norm of the gradient.
    rounding: of updates too small for parameters in bfloat16: `nearest` loses them, `stochastic`
      is exact in the mean, `kahan` keeps the rounding errors and adds them later.

  Raises:
    UserError: if a name is unknown, or if b1 > 0 and the optimiser has no momentum.
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


def learning_rate_at(update: int, peak: float, steps: int, warmup: int) -> float:
  """The learning rate of update `update`, counted from 0, of `make_optimizer`."""
  warmup = min(warmup, steps)
  if update < warmup:
    return peak * update / warmup
  left = max(steps - warmup, 1)
  return peak * (1 - 0.9 * min(update - warmup, left) / left)


def updates_taken(state: optax.OptState) -> int:
  """The number of updates of an optimiser of `make_optimizer`, by its state."""
  scheduled = lambda node: isinstance(node, optax.ScaleByScheduleState)
  (found,) = filter(scheduled, jax.tree.leaves(state, is_leaf=scheduled))
  return int(found.count)


def adafactor(b1: float, b2: float) -> optax.GradientTransformation:
  """Scales by factored root mean squares, and clips each layer's tensors to a mean square of 1.

  The mean squares decay by min(1 - t^-0.8, `b2`) (arXiv 2106.04560).
  """
  del b1
  decay = lambda step, exponent: jnp.minimum(1 - (step + 1.0) ** -exponent, b2)
  return optax.chain(
    optax.scale_by_factored_rms(decay_rate=0.8, decay_rate_fn=decay), clip_by_layer_rms()
  )


def clip_by_layer_rms() -> optax.GradientTransformation:
  """`optax.clip_by_block_rms(1)`, for each layer of stacked ones."""

  def clip(path, update):
    stacked = layers.in_stacked(jax.tree_util.keystr(path, simple=True, separator='/'))
    axes = tuple(range(int(stacked), update.ndim))
    square = jnp.mean(jnp.square(update), axis=axes, keepdims=True)
    return update / jnp.maximum(1.0, jnp.sqrt(square))

  return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(clip, updates))


EPSILON = 1e-8  # of Adam


class SecondMoment(NamedTuple):
  """The state of Adam without momentum: number of updates, and mean squared gradients."""

  count: Int[Array, '']
  nu: Params


def adam(b1: float, b2: float) -> optax.GradientTransformation:
  """`optax.scale_by_adam`; without momentum, the first moment is the gradient and is not stored."""
  if b1:
    return optax.scale_by_adam(b1=b1, b2=b2)

  def init(params):
    return SecondMoment(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

  def update(updates, state, params=None):
    del params
    nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
    count = optax.safe_increment(state.count)
    corrected = optax.tree.bias_correction(nu, b2, count)
    scaled = jax.tree.map(lambda g, v: g / (jnp.sqrt(v) + EPSILON), updates, corrected)
    return scaled, SecondMoment(count, nu)

  return optax.GradientTransformation(init, update)


SCALES = {
  'adamw': adam,
  'adafactor': adafactor,
  'rmsprop': lambda b1, b2: optax.scale_by_rms(decay=b2, eps_in_sqrt=False),
}


def widen(tree: Params) -> Params:
  """Casts leaves of fewer bits to float32."""
  return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)


def compute_in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Runs an optimiser on float32 copies of parameters and gradients; its updates are float32."""

  def update(updates, state, params):
    return inner.update(widen(updates), state, widen(params))

  return optax.GradientTransformation(lambda params: inner.init(widen(params)), update)


# --- Rounding: makes updates that bfloat16 parameters can add without error ---


class Stochastic(NamedTuple):
  """Number of updates so far, from which the random numbers of the next one are derived."""

  count: Int[Array, '']


class Kahan(NamedTuple):
  """Accumulated rounding error of each parameter; a scalar zero for those in float32."""

  errors: Params


def stochastic() -> optax.GradientTransformation:
  """Rounds each new parameter up or down at random, such that its mean is exact."""

  def update(updates, state, params):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), state.count), len(leaves))
    rounded = jax.tree.map(
      lambda change, leaf, key: _round_change(change, leaf, partial(_round_randomly, key)),
      updates,
      params,
      jax.tree.unflatten(tree, list(keys)),
    )
    return rounded, Stochastic(state.count + 1)

  return optax.GradientTransformation(lambda params: Stochastic(jnp.zeros((), jnp.int32)), update)


def kahan() -> optax.GradientTransformation:
  """Rounds to nearest, and adds the rounding error to the next update."""

  def init(params):
    return Kahan(
      jax.tree.map(lambda x: jnp.zeros(x.shape if _is_bfloat16(x) else (), x.dtype), params)
    )

  def update(updates, state, params):
    wanted = jax.tree.map(
      lambda change, leaf, error: (
        change + error.astype(jnp.float32) if _is_bfloat16(leaf) else change
      ),
      updates,
      params,
      state.errors,
    )
    done = jax.tree.map(
      lambda change, leaf: _round_change(change, leaf, _round_to_nearest), wanted, params
    )
    errors = jax.tree.map(
      lambda wanted, done, leaf, old: (
        (wanted - done).astype(leaf.dtype) if _is_bfloat16(leaf) else old
      ),
      wanted,
      done,
      params,
      state.errors,
    )
    return done, Kahan(errors)

  return optax.GradientTransformation(init, update)


ROUNDINGS = {'nearest': optax.identity, 'stochastic': stochastic, 'kahan': kahan}


def _is_bfloat16(leaf: Array) -> bool:
  return leaf.dtype == jnp.bfloat16


def _round_change(change: Array, leaf: Array, how: Callable[[Array], Array]) -> Array:
  """The change that rounds the new value of a bfloat16 leaf by `how`; others are unchanged."""
  if not _is_bfloat16(leaf):
    return change
  leaf = leaf.astype(jnp.float32)
  return how(leaf + change) - leaf


def _round_to_nearest(x: Float[Array, '*shape']) -> Float[Array, '*shape']:
  # XLA may remove a cast to bfloat16 and back.
  return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _round_randomly(key: Array, x: Float[Array, '*shape']) -> Float[Array, '*shape']:
  """Adds uniform noise below the last bit of bfloat16, then truncates."""
  noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  bits = (lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
  return lax.bitcast_convert_type(bits, jnp.float32)
