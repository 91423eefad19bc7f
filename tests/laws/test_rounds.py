"""Rows that are fitted in rounds: what one exact round does, and what many come to."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from scipy.special import log_softmax, logit, logsumexp, softmax

from nlhf_jax.algorithms import catalogue
from nlhf_jax.structs import Comparison, Responses
from nlhf_jax.training.update import initial_state, make_update
from tests.laws import exact, theory, tiny
from tests.laws.exact import natural

pytestmark = pytest.mark.usefixtures('float64')

NEVER = 10**9


def weights_step(preference, pi, eta):
  """pi exp(eta P(y > pi)) / Z."""
  return softmax(np.log(pi) + eta * (preference @ pi))


def variation(p, q):
  return abs(p - q).sum() / 2


# --- SPPO's constant in place of log Z (arXiv 2405.00675, appendix A) ---


def one_round(algorithm):
  """The exact argmin of the first round on the cyclic game."""
  find_fixed_point = exact.make_find_fixed_point(algorithm, natural(0.1), 3000)
  return np.exp(find_fixed_point(exact.CYCLE, exact.CYCLE_MU)['policy'])


@pytest.mark.parametrize(
  ('eta', 'least', 'most'), [(1.0, 0, 0.0005), (3.0, 0.0055, 0.0065), (10.0, 0.095, 0.105)]
)
def test_bias_of_constant_log_z_in_sppo(eta, least, most):
  # Of two samples one is the response itself, which halves its mean payoff: hence twice the eta.
  step = weights_step(exact.CYCLE, exact.CYCLE_MU, eta)
  cost = variation(one_round(catalogue.sppo(2 * eta, 2, NEVER, 0.5)), step)
  assert least <= cost <= most
  gains = eta * (exact.CYCLE - 0.5) @ exact.CYCLE_MU
  log_z = 0.5 + logsumexp(gains, b=exact.CYCLE_MU) / (2 * eta)
  tuned = one_round(catalogue.sppo(2 * eta, 2, NEVER, log_z))
  np.testing.assert_allclose(tuned, step, rtol=0, atol=1e-9)


def minimise_on(algorithm, actions, preference, start):
  """One round on one prompt, whose samples are the actions listed, compared all against all."""
  places = jnp.asarray(actions)[None, :, None]
  samples = Responses(places, jnp.ones_like(places, bool))
  payoff = jnp.asarray(preference - 0.5)[places, places.swapaxes(1, 2)]
  comparison = Comparison(None, samples, samples, payoff)
  optimizer = optax.sgd(0.3)
  update = make_update(algorithm, exact.make_score(), optimizer, lambda *_: {})
  state = initial_state(algorithm, jnp.log(start), optimizer)
  last = tiny.jit(
    lambda state: lax.scan(
      lambda state, _: (update(state, comparison, jax.random.key(0))[0], None), state, length=3000
    )[0]
  )(state)
  return np.array(jax.nn.softmax(last.params['policy']))


@pytest.mark.parametrize('eta', [1.0, 10.0])
def test_sppo_with_estimated_log_z_is_mwu(eta):
  # The samples have the policy's frequencies (1/4, 3/4), so that estimates are exact.
  preference, pi, samples = np.array([[0.5, 0.9], [0.1, 0.5]]), np.array([0.25, 0.75]), (0, 1, 1, 1)
  step = weights_step(preference, pi, eta)
  estimated = minimise_on(catalogue.sppo_estimated(eta, 4, NEVER), samples, preference, pi)
  np.testing.assert_allclose(estimated, step, rtol=0, atol=1e-9)
  constant = minimise_on(catalogue.sppo(eta, 4, NEVER, 0.5), samples, preference, pi)
  assert variation(constant, step) > 0.002 * eta


def test_sppo_pair_round_is_mwu():
  pair = one_round(catalogue.sppo_pair(1.0, 2, NEVER))
  assert variation(pair, weights_step(exact.CYCLE, exact.CYCLE_MU, 1.0)) < 0.0005


# --- Averages ---


def test_average_of_gpo_approaches_log_odds_nash():
  run = exact.make_run(catalogue.gpo(0.1, 2, 1), natural(0.5), 40000)
  path, _ = run(exact.CYCLE, exact.CYCLE_MU)
  policies, scores = np.exp(path), logit(exact.CYCLE)
  nash = theory.lottery_of_odds(exact.CYCLE, exact.CYCLE_MU)
  assert variation(nash, theory.lottery(exact.CYCLE, exact.CYCLE_MU)) > 0.03
  assert variation(policies.mean(0), nash) < 0.01
  assert (scores @ policies.mean(0)).max() < 0.02
  assert (scores @ policies[-1]).max() > 1  # the last iterate diverges
  assert policies[-1].max() > 0.9


# --- Demonstrations ---

SHARES = np.array([0.7, 0.1, 0.2])


# Below one half a round overshoots and ends further away.
@pytest.mark.parametrize('beta', [1.0, 2.0, 0.4])
def test_spin_round_moves_by_one_over_beta(beta):
  updates, start = 1500, np.array([0.6, 0.15, 0.25])
  run = exact.make_run(catalogue.spin(beta, updates), natural(0.5), 2 * updates)
  path, _ = run(exact.CYCLE, start, SHARES)
  log_pi = np.log(start)
  for after in path[updates - 1 :: updates]:
    before, log_pi = log_pi, log_softmax(log_pi + (np.log(SHARES) - log_pi) / beta)
    np.testing.assert_allclose(after, log_pi, rtol=0, atol=1e-6)
    near, far = (np.ptp(policy - np.log(SHARES)) for policy in (before, after))
    np.testing.assert_allclose(far, near * abs(1 - 1 / beta), rtol=0, atol=1e-5)
