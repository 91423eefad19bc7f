"""Under an additive payoff r(y) - r(y'), playing against anyone is maximising a reward."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures('float64')

TAU = 0.1  # of `exact.ROWS`
REWARD = np.array([0.1, -0.1, 0.05])
PAYOFF = REWARD[:, None] - REWARD


def regularised_reward(logits, mu):
  log_pi = jax.nn.log_softmax(logits)
  return jnp.exp(log_pi) @ (REWARD - TAU * (log_pi - jax.nn.log_softmax(mu)))


@pytest.mark.parametrize('name', exact.ROWS)
def test_the_expected_gradient_is_that_of_the_reward_whoever_the_opponent(name):
  algorithm = exact.ROWS[name]
  random = np.random.default_rng(0)
  params = {slot: random.normal(size=3) for slot in ('policy', *algorithm.references)}
  truth = jax.grad(regularised_reward)(params['policy'], params['reference'])
  np.testing.assert_allclose(exact.make_ascent(algorithm)(params, PAYOFF), truth, atol=1e-12)


@pytest.mark.parametrize('name', exact.ROWS)
def test_every_row_rests_at_mu_exp_reward_over_tau(name):
  log_pi = exact.make_settle(exact.ROWS[name])(PAYOFF)['policy']
  optimum = jax.nn.log_softmax(np.log(exact.MU) + REWARD / TAU)
  np.testing.assert_allclose(log_pi, optimum, atol=1e-8)
