"""Law: prompts without a usable judgement do not affect the update."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.algorithm import LEFT
from nlhf_jax.structs import Comparison, Prompts, Responses, Scores
from nlhf_jax.training import step_metrics
from nlhf_jax.training.update import initial_state, make_update

BATCH, VOCABULARY = 6, 7
UNUSABLE = [1, 2]
# Losses of every shape: over K x J, over K with mean payoffs, best of K, among K.
ROWS = {
  'nash_md_pg': catalogue.nash_md_pg(beta=0.125, tau=0.1),
  'online_ipo': catalogue.online_ipo(tau=0.1),
  'sppo': catalogue.sppo(eta=2.0, samples=3, every=5, log_z=0.5),
  'rspo': catalogue.rspo(eta=2.0, samples=3, every=5, forward=0.1, reverse=0.1),
}


def some_responses(random, count):
  tokens = jnp.asarray(random.integers(VOCABULARY, size=(BATCH, count, 4)), jnp.int32)
  return Responses(tokens, tokens >= 0, jnp.zeros(tokens.shape), jnp.ones(tokens.shape))


def some_comparison(algorithm):
  random = np.random.default_rng(0)
  left = some_responses(random, len(algorithm.left))
  right = left if algorithm.right == LEFT else some_responses(random, len(algorithm.right))
  payoff = random.uniform(-0.5, 0.5, size=(BATCH, left.tokens.shape[1], right.tokens.shape[1]))
  if right is left:
    payoff = (payoff - payoff.swapaxes(1, 2)) / 2
  prompts = Prompts(jnp.zeros((BATCH, 1), jnp.int32), jnp.ones((BATCH, 1), bool))
  return Comparison(prompts, left, right, jnp.asarray(payoff, jnp.float32))


def score(params, comparison):
  log_p = jax.nn.log_softmax(params['logits'])
  return Scores(
    log_p[comparison.left.tokens],
    None if comparison.right is None else log_p[comparison.right.tokens],
  )


def updated(algorithm, comparison, accumulate=1):
  """Metrics and the policy after one step."""
  start = {'logits': jnp.asarray(np.random.default_rng(1).normal(size=VOCABULARY), jnp.float32)}
  optimizer = optax.sgd(1.0)
  update = make_update(
    algorithm, score, optimizer, step_metrics.make_rollout_metrics(algorithm), accumulate
  )
  state = initial_state(algorithm, start, optimizer)
  state, metrics = update(state, comparison, jax.random.key(0))
  return metrics, state.slots['policy'], start


def without(comparison, rows):
  kept = np.setdiff1d(np.arange(BATCH), rows)
  return jax.tree.map(lambda leaf: leaf[kept], comparison)


@pytest.mark.parametrize('name', ROWS)
@pytest.mark.parametrize('accumulate', [1, 2])
def test_update_equals_that_of_the_other_prompts(name, accumulate):
  whole = some_comparison(ROWS[name])
  payoff = whole.payoff.at[UNUSABLE, 0, -1].set(jnp.nan).at[UNUSABLE[0], -1, 0].set(jnp.nan)
  metrics, policy, start = updated(ROWS[name], whole._replace(payoff=payoff), accumulate)
  alone, expected, _ = updated(ROWS[name], without(whole, UNUSABLE))
  chex.assert_trees_all_close(policy, expected, rtol=1e-5, atol=1e-6)
  assert jnp.max(jnp.abs(policy['logits'] - start['logits'])) > 1e-3
  np.testing.assert_allclose(metrics['loss'], alone['loss'], rtol=1e-5)
  assert all(np.isfinite(value) for value in metrics.values())


def test_update_without_usable_prompts_changes_nothing():
  algorithm = ROWS['nash_md_pg']
  whole = some_comparison(algorithm)
  nothing = whole._replace(payoff=jnp.full_like(whole.payoff, jnp.nan))
  _, policy, start = updated(algorithm, nothing)
  chex.assert_trees_all_equal(policy, start)
