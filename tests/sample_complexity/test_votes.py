"""Designs sum to one, and votes have the right mean and variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.games import matrices
from nlhf_jax.sample_complexity import votes
from nlhf_jax.sample_complexity.links import log_odds, probability
from nlhf_jax.sample_complexity.setting import (
  Setting,
  duel_weights,
  duel_weights_by_action,
  sum_over_pairs,
)

pytestmark = pytest.mark.usefixtures('float64')

X, K = 3, 4


def contexts(seed=0, tau=0.1):
  random = np.random.default_rng(seed)
  return Setting(
    jnp.asarray(random.dirichlet(np.ones(X))),
    jnp.log(random.dirichlet(np.ones(K), X)),
    jnp.asarray(tau),
  )


def policies(seed):
  return jnp.log(np.random.default_rng(seed).dirichlet(np.ones(K), X))


def test_designs_sum_to_one():
  setting, log_p, log_q = contexts(), policies(1), policies(2)
  for design in (votes.uniform_design(setting), votes.design_around_action(setting, 1, 1e-3)):
    np.testing.assert_allclose(sum_over_pairs(design), setting.prompts, rtol=1e-14)
    np.testing.assert_array_equal(design, design.swapaxes(1, 2))
    assert (jnp.diagonal(design, axis1=1, axis2=2) == 0).all()
  star = votes.design_around_action(setting, 1, 1e-3)
  np.testing.assert_allclose(star[:, 0, 2] / star[:, 0, 1], 1e-3, rtol=1e-12)
  # The probability of two different actions: 1 - sum_a p_a q_a.
  design = votes.design_from_policies(setting, log_p, log_q)
  wasted = (jnp.exp(log_p) * jnp.exp(log_q)).sum(axis=1)
  np.testing.assert_allclose(sum_over_pairs(design), setting.prompts * (1 - wasted), rtol=1e-14)


@pytest.mark.slow
def test_votes_have_the_right_mean_and_variance():
  """20,000 draws of each way to ask: means within 5 standard errors, variances of theirs."""
  setting = contexts()
  preference = 0.5 + jnp.asarray(matrices.prompts(K, X, seed=3))
  design = votes.design_from_policies(setting, policies(1), policies(2))
  total, seeds = 30, 20_000
  counts = jnp.round(100 * design)

  @jax.jit
  @jax.vmap
  def draw(key):
    return (
      votes.sample_votes(key, preference, design, total),
      votes.sample_few_votes(key, preference, design, total),
      votes.sample_wins(key, preference, counts),
    )

  asked, each, voted = draw(jax.random.split(jax.random.key(0), seeds))
  assert (voted + voted.swapaxes(2, 3) == counts).all()
  for wins in (asked, each):
    assert (wins.sum(axis=(1, 2, 3)) <= total).all()
  share, chance = design * preference, preference
  for wins, mean, variance in (
    (asked, total * share, total * share * (1 - share)),
    (each, total * share, total * share * (1 - share)),
    (voted, counts * chance, counts * chance * (1 - chance)),
  ):
    assert (abs(wins.mean(axis=0) - mean) <= 5 * np.sqrt(variance / seeds)).all()
    fourth = variance * (1 + 3 * variance)  # of a binomial, at most
    assert (abs(wins.var(axis=0) - variance) <= 5 * np.sqrt(fourth / seeds)).all()


def test_duel_weights_give_the_expected_error():
  setting, log_p, log_q = contexts(), policies(1), policies(2)
  delta = jnp.asarray(matrices.prompts(K, X, seed=3))
  seen = jnp.einsum('x,xa,xab,xb', setting.prompts, jnp.exp(log_p), delta, jnp.exp(log_q))
  weights = duel_weights(setting, log_p, log_q)
  np.testing.assert_allclose(sum_over_pairs(weights * delta).sum(), seen, rtol=1e-13)
  assert not duel_weights(setting, log_p, log_p).any()
  single = jnp.where(jnp.arange(K) == 2, 0.0, -jnp.inf) * jnp.ones((X, 1))
  np.testing.assert_allclose(
    duel_weights_by_action(setting, log_p)[:, 2], duel_weights(setting, log_p, single), atol=1e-16
  )


def test_links_are_antisymmetric_with_right_slopes():
  preference = 0.5 + jnp.asarray(matrices.random(5, 0))
  for link in (probability(), log_odds()):
    payoff = link.payoff(preference)
    np.testing.assert_allclose(payoff, -payoff.T, atol=1e-15)
    slope = jax.vmap(jax.grad(link.payoff))(preference.ravel()).reshape(5, 5)
    np.testing.assert_allclose(slope, link.slope(preference), rtol=1e-12)
  rewards = np.array([0.3, -1.0, 2.0])
  payoff = log_odds().payoff(0.5 + matrices.bradley_terry(rewards))
  np.testing.assert_allclose(payoff, rewards[:, None] - rewards, atol=1e-14)
  assert log_odds(3.0).payoff(jnp.array([0.0, 1.0])).tolist() == [-3.0, 3.0]
