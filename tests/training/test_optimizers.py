"""Optimisers equal reference implementations, and bfloat16 parameters follow their updates."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from nlhf_jax.errors import UserError
from nlhf_jax.training import optimizers

STEPS = 12
SETTINGS = dict(warmup=0, b1=0.0, b2=0.98, decay=0.0, clip=1e9, rounding='nearest')


def make(name='adamw', rate=0.1, steps=STEPS, **changes):
  return optimizers.make_optimizer(name, rate, steps, **SETTINGS | changes)


def path(optimizer, params, gradients):
  """Parameters after each update."""

  @jax.jit
  def step(params, state, gradient):
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  state, visited = optimizer.init(params), []
  for gradient in gradients:
    params, state = step(params, state, gradient)
    visited.append(params)
  return visited


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_adam_without_momentum_stores_no_first_moment(dtype):
  params = jnp.linspace(-1, 1, 24, dtype=dtype).reshape(4, 6)
  plain, stored = optimizers.adam(0.0, 0.98), optax.scale_by_adam(b1=0.0, b2=0.98)
  one, other = plain.init(params), stored.init(params)
  sizes = [sum(leaf.size for leaf in jax.tree.leaves(state)) for state in (one, other)]
  assert sizes == [24 + 1, 2 * 24 + 1]
  for gradient in some_gradients((4, 6)):
    ours, one = jax.jit(plain.update)(gradient.astype(dtype), one)
    theirs, other = jax.jit(stored.update)(gradient.astype(dtype), other)
    np.testing.assert_array_equal(ours, theirs)
  assert isinstance(optimizers.adam(0.9, 0.98).init(params), optax.ScaleByAdamState)


def some_gradients(shape, steps=STEPS):
  random = np.random.default_rng(0)
  return [jnp.asarray(random.normal(size=shape), jnp.float32) for _ in range(steps)]


def falling(rate):
  """The schedule without warm-up."""
  return optax.linear_schedule(rate, rate / 10, STEPS)


@pytest.mark.parametrize(
  ('ours', 'theirs'),
  [
    (make(b1=0.9, decay=0.1), optax.adamw(falling(0.1), b1=0.9, b2=0.98, weight_decay=0.1)),
    (
      make('adafactor', b2=0.9999),
      optax.adafactor(falling(0.1), multiply_by_parameter_scale=False),
    ),
  ],
  ids=['adamw', 'adafactor'],
)
def test_optimiser_equals_optax(ours, theirs):
  params, gradients = jnp.ones((128, 130)), some_gradients((128, 130))
  for found, expected in zip(
    path(ours, params, gradients), path(theirs, params, gradients), strict=True
  ):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_adafactor_keeps_factored_state_only():
  memory = make('adafactor').init({'kernel': jnp.zeros((128, 256))})
  assert sum(leaf.size for leaf in jax.tree.leaves(memory)) < 3 * (128 + 256)


def test_adafactor_decay_is_bounded_by_b2():
  gradients = [jnp.full((3,), 8.0)] * 100 + [jnp.ones(3)] * 100
  slow, fast = (
    path(make('adafactor', rate=1.0, steps=200, b2=b2), jnp.zeros(3), gradients)
    for b2 in (0.9999, 0.9)
  )
  moved = [float(abs(run[199] - run[149])[0]) for run in (slow, fast)]
  assert moved[1] > 2 * moved[0]  # the slow one still divides by the old, large gradients


def test_rmsprop_equals_torch():
  rate, gradients = 0.1, some_gradients((5,))
  theirs = torch.nn.Parameter(torch.ones(5))
  optimizer = torch.optim.RMSprop([theirs], lr=rate, alpha=0.98, eps=1e-8)
  visited = path(make('rmsprop', rate=rate), jnp.ones(5), gradients)
  for number, gradient in enumerate(gradients):
    optimizer.param_groups[0]['lr'] = float(falling(rate)(number))
    theirs.grad = torch.tensor(np.array(gradient))
    optimizer.step()
    np.testing.assert_allclose(visited[number], theirs.detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize('name', list(optimizers.SCALES))
def test_bfloat16_parameters_get_float32_updates_and_state(name):
  optimizer = make(name)
  params = {'kernel': jnp.ones((128, 128), jnp.bfloat16)}
  state = optimizer.init(params)
  updates, state = jax.jit(optimizer.update)(params, state, params)
  floats = [leaf for leaf in jax.tree.leaves((updates, state)) if leaf.dtype != jnp.int32]
  assert {leaf.dtype for leaf in floats} == {jnp.dtype('float32')}
  assert optax.apply_updates(params, updates)['kernel'].dtype == jnp.bfloat16


# --- Rounding ---

SIZE, COUNT, CHANGE = 4_000, 400, 2.0**-13  # at 1, bfloat16 has a resolution of 2^-7


def followed(rounding, changes, dtype=jnp.bfloat16):
  """Ones after all changes were added."""
  rounder = optimizers.ROUNDINGS[rounding]()
  params = jnp.ones(SIZE, dtype)

  def step(carry, change):
    params, state = carry
    updates, state = rounder.update(jnp.full(SIZE, change), state, params)
    return (optax.apply_updates(params, updates), state), None

  run = jax.jit(partial(jax.lax.scan, step))
  return np.asarray(run((params, rounder.init(params)), changes)[0][0], float)


def test_nearest_rounding_loses_small_updates():
  np.testing.assert_array_equal(followed('nearest', jnp.full(COUNT, CHANGE)), 1.0)


@pytest.mark.parametrize('sign', [1, -1])
def test_kahan_rounding_is_exact_to_the_last_bit(sign):
  random = np.random.default_rng(0)
  changes = sign * CHANGE * random.uniform(0, 2, size=COUNT)
  end = followed('kahan', jnp.asarray(changes, jnp.float32))
  np.testing.assert_allclose(end, 1 + changes.sum(), atol=2.0**-8)


@pytest.mark.parametrize('sign', [1, -1])
def test_stochastic_rounding_is_exact_in_the_mean(sign):
  end = followed('stochastic', jnp.full(COUNT, sign * CHANGE))
  error = end.std() / SIZE**0.5
  assert 0 < error < 1e-3
  assert abs(end.mean() - (1 + sign * COUNT * CHANGE)) < 4 * error


@pytest.mark.parametrize('rounding', list(optimizers.ROUNDINGS))
def test_rounding_leaves_float32_unchanged(rounding):
  changes = jnp.asarray(np.random.default_rng(0).normal(size=8), jnp.float32)
  np.testing.assert_array_equal(
    followed(rounding, changes, jnp.float32), followed('nearest', changes, jnp.float32)
  )


def test_stochastic_rounding_depends_on_its_state_alone():
  optimizer, params = make(rounding='stochastic', rate=1e-3), jnp.ones(100, jnp.bfloat16)
  gradients = some_gradients((100,))
  state = optimizer.init(params)
  ends = []
  for gradient in gradients:
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    ends.append((params, state))
  again = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), ends[5])
  for gradient in gradients[6:]:
    updates, state = optimizer.update(gradient, again[1], again[0])
    again = optax.apply_updates(again[0], updates), state
  np.testing.assert_array_equal(again[0], params)
  moves = [np.asarray(after[0] - before[0]) for before, after in itertools.pairwise(ends)]
  assert not np.array_equal(moves[0] != 0, moves[1] != 0)


@pytest.mark.parametrize(
  ('changes', 'sentence'),
  [
    (dict(name='adam'), "name='adam' must be one of adamw, adafactor, rmsprop"),
    (dict(rounding='up'), "rounding='up' must be one of nearest, stochastic, kahan"),
    (dict(name='adafactor', b1=0.9), 'b1=0.9: adafactor has no momentum; set b1=0'),
  ],
)
def test_unknown_settings_are_refused(changes, sentence):
  with pytest.raises(UserError, match=sentence):
    make(**changes)
