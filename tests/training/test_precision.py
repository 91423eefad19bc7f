"""Training in every combination of compute and weight types; reductions are in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax import trees
from nlhf_jax.algorithms import catalogue
from nlhf_jax.judges.judge import judge_from_network
from nlhf_jax.judges.learned import make_preference_network
from nlhf_jax.models import architectures, scoring
from nlhf_jax.models.blocks import Numerics
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.structs import Comparison, Prompts, Responses
from nlhf_jax.training import optimizers, step_metrics
from nlhf_jax.training.update import initial_state, make_update

WIDTH = 16
SIZES = architectures.small(
  11, WIDTH, layers=1, heads=2, key_heads=1, head_size=8, hidden=32, rotary_base=1e4
)
ALGORITHM = catalogue.nash_md_pg(beta=0.125, tau=0.1)
FLOAT, HALF = jnp.float32, jnp.bfloat16


def some_parameters(numerics, seed=0):
  random = np.random.default_rng(seed)
  shapes = jax.eval_shape(make_decoder(SIZES, numerics).init, jax.random.key(0))
  return jax.tree.map(
    lambda leaf: jnp.asarray(random.normal(size=leaf.shape, scale=0.3), leaf.dtype), shapes
  )


def some_comparison():
  random = np.random.default_rng(0)
  prompts = jnp.asarray(random.integers(11, size=(4, 3)))

  def responses():
    tokens = jnp.asarray(random.integers(11, size=(4, 1, 6)))
    zeros = jnp.zeros(tokens.shape)
    return Responses(tokens, jnp.arange(6) < jnp.array([6, 2, 4, 5])[:, None, None], zeros, zeros)

  payoff = jnp.asarray(random.uniform(-0.5, 0.5, size=(4, 1, 1)), jnp.float32)
  return Comparison(Prompts(prompts, prompts >= 0), responses(), responses(), payoff)


def dtypes(tree):
  return {leaf.dtype for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize(
  ('numerics', 'rounding', 'accumulate'),
  [
    (Numerics(), 'nearest', 1),
    (Numerics(HALF), 'nearest', 1),
    (Numerics(HALF, HALF), 'kahan', 2),
  ],
  ids=['float32', 'bfloat16 in float32 weights', 'bfloat16 alone'],
)
def test_update_keeps_weight_type_and_sums_in_float32(numerics, rounding, accumulate):
  optimizer = optimizers.make_optimizer(
    'adamw', 1e-2, 10, warmup=0, b1=0.0, b2=0.95, decay=0.0, clip=1.0, rounding=rounding
  )
  read, seen = scoring.make_score(make_decoder(SIZES, numerics)), set()

  def score(params, comparison):
    scores = read(params, comparison)
    seen.update(dtypes(scores))
    return scores

  update = make_update(
    ALGORITHM, score, optimizer, step_metrics.make_rollout_metrics(ALGORITHM), accumulate
  )
  params = some_parameters(numerics)
  state = initial_state(ALGORITHM, params, optimizer)
  after, metrics = update(state, some_comparison(), jax.random.key(0))
  assert dtypes(after.slots['policy']) == {jnp.dtype(numerics.weights)}
  assert seen == {jnp.dtype(FLOAT)}
  assert dtypes((metrics['loss'], metrics['gradient_norm'])) == {jnp.dtype(FLOAT)}
  moved = jax.tree.map(lambda new, old: jnp.any(new != old), after.slots['policy'], params)
  assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize('numerics', [Numerics(HALF), Numerics(HALF, HALF)])
def test_judges_return_payoffs_in_float32(numerics):
  network = make_preference_network(make_decoder(SIZES, numerics), WIDTH, separator=1)
  params = network.init(some_parameters(numerics)) | {'verdict': jnp.ones(WIDTH)}
  payoff = judge_from_network(network, params)(some_comparison())
  assert payoff.dtype == FLOAT
  assert float(abs(payoff).max()) > 0


@pytest.mark.parametrize('weights', [FLOAT, HALF])
def test_bfloat16_gradients_are_close_to_float32(weights):
  comparison = some_comparison()

  def gradient(numerics):
    score = scoring.make_score(make_decoder(SIZES, numerics))
    params = jax.tree.map(lambda leaf: leaf.astype(numerics.weights), some_parameters(Numerics()))
    reference = some_parameters(numerics, seed=1)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
      scores = {'policy': score(params, comparison), 'reference': score(reference, comparison)}
      return jnp.mean(ALGORITHM.loss(scores, comparison))

    value, gradient = loss(params)
    flat = [np.asarray(leaf, float).ravel() for leaf in trees.flatten(gradient).values()]
    return float(value), np.concatenate(flat)

  expected, exact = gradient(Numerics())
  found, rounded = gradient(Numerics(HALF, weights))
  assert found == pytest.approx(expected, rel=0.02)
  assert np.linalg.norm(rounded - exact) < 0.05 * np.linalg.norm(exact)
