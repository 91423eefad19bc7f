"""Batches of matrices are solved as `jax.numpy` solves them, and are never cut among threads."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax import linear_algebra
from nlhf_jax.games import exact
from nlhf_jax.sample_complexity import protocols, worlds
from nlhf_jax.sample_complexity.setting import single_prompt

pytestmark = pytest.mark.usefixtures('float64')
RANDOM = np.random.default_rng(0)
CALL = re.compile(r'@lapack_\w+\((.*?)\).*: \((.*?)\) ->')


def random(*shape):
  return RANDOM.normal(size=shape)


def definite(*shape):
  factor = random(*shape)
  return factor @ np.swapaxes(factor, -1, -2) + np.eye(shape[-1])


OWN = {
  'solve': (linear_algebra.solve, jnp.linalg.solve, (random(3, 400, 8, 8), random(3, 400, 8))),
  'columns': (linear_algebra.solve, jnp.linalg.solve, (random(2, 9, 60, 60), random(2, 9, 60, 2))),
  'least_squares': (
    linear_algebra.least_squares,
    lambda matrix, right: jnp.linalg.lstsq(matrix, right)[0],
    (random(2, 300, 6, 5), random(2, 300, 6)),
  ),
  'log_determinant': (
    linear_algebra.log_determinant,
    lambda matrix: jnp.linalg.slogdet(matrix)[1],
    (random(3, 400, 8, 8),),
  ),
  'eigenvalues': (linear_algebra.eigenvalues, jnp.linalg.eigvals, (random(3, 40, 8, 8),)),
  'pseudo_inverse': (linear_algebra.pseudo_inverse, jnp.linalg.pinv, (random(2, 40, 9, 5),)),
  'spectral_norm': (
    linear_algebra.spectral_norm,
    lambda matrix: jnp.linalg.norm(matrix, 2),
    (random(2, 40, 9, 5),),
  ),
  'inverse_norms': (
    linear_algebra.inverse_norms,
    lambda matrix, rows: jnp.sqrt((rows * jnp.linalg.solve(matrix, rows.T).T).sum(axis=1)),
    (definite(2, 300, 8, 8), random(2, 300, 7, 8)),
  ),
}


@pytest.mark.parametrize('name', OWN)
def test_batches_in_batches_are_solved_as_by_jax_numpy(name):
  ours, theirs, arrays = OWN[name]
  found = jax.jit(jax.vmap(jax.vmap(ours)))(*arrays)
  expected = jax.vmap(jax.vmap(theirs))(*arrays)
  np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_what_is_not_batched_is_shared_by_the_batch():
  matrix, right = random(300, 12, 12), random(5, 12)
  over_both = jax.vmap(jax.vmap(linear_algebra.solve, (None, 0)), (0, None))
  expected = jnp.linalg.solve(matrix, jnp.broadcast_to(right.T, (300, 12, 5)))
  np.testing.assert_allclose(over_both(matrix, right), jnp.swapaxes(expected, 1, 2), rtol=1e-9)


@pytest.mark.parametrize('mode', [jax.jacfwd, jax.jacrev])
def test_solutions_have_derivatives_by_matrix_and_right_side(mode):
  matrix, right = random(4, 5, 5), random(4, 5)
  found = jax.vmap(mode(linear_algebra.solve, argnums=(0, 1)))(matrix, right)
  expected = jax.vmap(mode(jnp.linalg.solve, argnums=(0, 1)))(matrix, right)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), found, expected
  )


def learn_rewards(key):
  setting = single_prompt(worlds.geometric_reference(6, rate=0.5), 0.5)
  samples = np.geomspace(1e2, 1e7, 10)
  return protocols.learn_rewards(worlds.bradley_terry(actions=6), setting, samples, key)


def solve_games(key):
  payoff = jax.random.normal(key, (30, 30))
  game = exact.Game(payoff - payoff.T, jnp.full(30, -jnp.log(30.0)), jnp.asarray(0.1))
  return exact.equilibrium(game).log_pi, exact.anderson().init(game, game.log_reference)


@pytest.mark.parametrize('program', [learn_rewards, solve_games])
def test_no_batch_is_large_enough_to_be_cut(program):
  """On two cores, two batches that are cut at the same time can wait for each other for ever."""
  keys = jax.random.split(jax.random.key(0), 100)
  text = jax.jit(jax.vmap(program)).lower(keys).as_text()
  calls = [types for _, types in CALL.findall(text)]
  assert calls
  for types in calls:
    for shape in re.findall(r'tensor<([\dx]+)xf64>', types):
      *batch, rows, columns = map(int, shape.split('x'))
      assert math.prod(batch) * rows * columns * min(rows, columns) <= 200_000 or batch == [1], (
        types
      )
