"""Under an additive payoff r(y) - r(y'), playing against anyone is maximising a reward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws import exact
from tests.laws.test_fixed_points import LAWS, fixed_point_finder, nash

pytestmark = pytest.mark.usefixtures('float64')

TAU = 0.1  # of all algorithms here
REWARD = np.array([0.1, -0.1, 0.05])
PAYOFF = REWARD[:, None] - REWARD
BLIND = ('nash_md_pg', 'best_response', 'ipo_md')  # of an opponent that would bias them otherwise


@pytest.mark.parametrize('name', exact.POLICY_GRADIENTS)
def test_additive_gradient_ignores_the_opponent(name):
  algorithm, coefficients = exact.POLICY_GRADIENTS[name]

  def regularised_reward(logits, params):
    log_pi = jax.nn.log_softmax(logits)
    penalties = sum(
      tau * (log_pi - jax.nn.log_softmax(params[slot])) for slot, tau in coefficients.items()
    )
    return jnp.exp(log_pi) @ (REWARD - penalties)

  random = np.random.default_rng(0)
  params = {slot: random.normal(size=3) for slot in ('policy', *algorithm.references)}
  truth = jax.grad(regularised_reward)(params['policy'], params)
  np.testing.assert_allclose(exact.ascent_of(name)(params, PAYOFF), truth, atol=1e-12)


@pytest.mark.parametrize(
  'name', [name for name in LAWS if name in BLIND or LAWS[name].theory is nash]
)
def test_additive_fixed_points_are_mu_exp_reward(name):
  log_pi = fixed_point_finder(name)(PAYOFF + 0.5, exact.MU)['policy']
  optimum = jax.nn.log_softmax(np.log(exact.MU) + REWARD / TAU)
  np.testing.assert_allclose(log_pi, optimum, rtol=0, atol=1e-8)
