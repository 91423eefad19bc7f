"""Expected policy gradients are those of the regularised preference, with known variance."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.losses import policy_gradient
from nlhf_jax.structs import Comparison, Scores
from tests.laws import exact, tiny

pytestmark = pytest.mark.usefixtures('float64')

# One point of the game of arXiv 2312.00886, section 3.2, with e = .1.
TAU, BETA = 0.1, 0.125
PREFERENCE = exact.raters(0.1)
PARAMS = {'policy': np.array([0.3, -0.2, 0.5]), 'reference': np.log(exact.MU)}
NASH_MD_PG = catalogue.nash_md_pg(BETA, TAU)
GRADIENT = (0.048731, 0.010302, -0.059034)
PREFERENCE_ALONE = (0.016847, -0.004894, -0.011952)


def regularised_preference(logits, opponent, preference, mu, tau):
  """P_tau(pi > pi') up to the opponent's own KL (arXiv 2312.00886, eq. 2)."""
  log_pi = jax.nn.log_softmax(logits)
  pi = jnp.exp(log_pi)
  return pi @ preference @ opponent - tau * pi @ (log_pi - jax.nn.log_softmax(mu))


def opponent(algorithm, params):
  slots = jax.tree.map(jax.nn.log_softmax, params)
  return jnp.mean(jnp.stack([jnp.exp(exact.mixed(m, slots)) for m in algorithm.right]), axis=0)


def finite_difference(f, x, h=1e-5):
  return np.array([(f(x + e) - f(x - e)) / (2 * h) for e in h * np.eye(len(x))])


def pairs(payoff):
  """Each pair's probability [V, V] and gradient estimate [V, V, V] at the point above."""

  def losses(logits):
    log_probs = {
      slot: exact.one_token(p)[None] for slot, p in (PARAMS | {'policy': logits}).items()
    }
    scores = {slot: Scores(log_pi, log_pi) for slot, log_pi in log_probs.items()}
    return NASH_MD_PG.loss(scores, Comparison(None, None, None, jnp.asarray(payoff)[None]))[0]

  estimates = tiny.jit(jax.jacobian(losses))(PARAMS['policy'])
  log_probs = jax.tree.map(jax.nn.log_softmax, PARAMS)
  return np.array(exact.chances(NASH_MD_PG, log_probs)).reshape(3, 3), -np.array(estimates)


@pytest.mark.parametrize('baseline', [0.5, 0.0])
def test_nash_md_pg_follows_the_regularised_preference(baseline):
  pi = jax.nn.softmax(PARAMS['policy'])
  against = opponent(NASH_MD_PG, PARAMS)
  np.testing.assert_allclose(pi, (0.353615, 0.214478, 0.431906), atol=6e-7)
  np.testing.assert_allclose(against, (0.393040, 0.232704, 0.374256), atol=6e-7)

  gradient = exact.make_ascent(NASH_MD_PG)(PARAMS, PREFERENCE - baseline)
  objective = partial(
    regularised_preference, opponent=against, preference=PREFERENCE, mu=PARAMS['reference'], tau=TAU
  )
  np.testing.assert_allclose(gradient, GRADIENT, atol=6e-7)
  np.testing.assert_allclose(gradient, finite_difference(objective, PARAMS['policy']), atol=1e-9)


@pytest.mark.parametrize('name', exact.POLICY_GRADIENTS)
def test_policy_gradients_follow_their_objective(name):
  algorithm, coefficients = exact.POLICY_GRADIENTS[name]
  ascent = exact.ascent_of(name)

  def objective(logits, params, preference):
    log_pi = jax.nn.log_softmax(logits)
    penalties = sum(
      tau * (log_pi - jax.nn.log_softmax(params[slot])) for slot, tau in coefficients.items()
    )
    return jnp.exp(log_pi) @ (preference @ opponent(algorithm, params) - penalties)

  for seed in range(3):
    preference = exact.random_game(seed, 3)
    random = np.random.default_rng(seed)
    params = {slot: random.normal(size=3) for slot in ('policy', *algorithm.references)}
    # The opponent is held still.
    truth = jax.grad(objective)(params['policy'], params, preference)
    np.testing.assert_allclose(ascent(params, preference - 0.5), truth, atol=1e-12)


@pytest.mark.parametrize(('baseline', 'variance'), [(0.5, 0.014719), (0.0, 0.161509)])
def test_baseline_one_half_reduces_variance(baseline, variance):
  chance, estimates = pairs(PREFERENCE - baseline)
  mean = np.tensordot(chance, estimates, 2)
  np.testing.assert_allclose(mean, GRADIENT, atol=6e-7)
  trace = np.sum(chance * np.sum((estimates - mean) ** 2, axis=-1))
  np.testing.assert_allclose(trace, variance, atol=6e-7)


def test_full_kl_in_brackets_has_no_gradient():
  # The KL is the same for every response, so it is a baseline: its expected gradient is zero.
  log_pi, log_mu = (jax.nn.log_softmax(PARAMS[slot]) for slot in ('policy', 'reference'))
  kl = jnp.exp(log_pi) @ (log_pi - log_mu)

  def full_kl(scores, comparison):
    return -scores['policy'].left * (comparison.payoff - TAU * kl)

  for loss in (full_kl, policy_gradient(reference=0.0)):
    gradient = exact.make_ascent(NASH_MD_PG._replace(loss=loss))(PARAMS, PREFERENCE - 0.5)
    np.testing.assert_allclose(gradient, PREFERENCE_ALONE, atol=6e-7)


def credited(credit):
  """The regulariser alone: each token's score times what `credit` makes of the log-ratios."""

  def loss(scores, comparison):
    log_pi = scores['policy'].left
    ratio = lax.stop_gradient(log_pi) - scores['reference'].left
    return TAU * jnp.sum(log_pi * credit(ratio), axis=-1, keepdims=True) + comparison.payoff

  return loss


def whole_response(ratio):
  return jnp.sum(ratio, axis=-1, keepdims=True)


def own_token(ratio):
  return ratio


SECOND_TOKEN = (0.209987, -0.209987, 0, 0)


@pytest.mark.parametrize(
  ('loss', 'kl_gradient'),
  [
    (policy_gradient(reference=TAU), (0.380797, -0.380797, *SECOND_TOKEN)),
    (credited(whole_response), (0.380797, -0.380797, *SECOND_TOKEN)),
    (credited(own_token), (0, 0, *SECOND_TOKEN)),  # blind to how a token changes the KL after it
  ],
  ids=['reward_to_go', 'whole_response', 'own_token_alone'],
)
def test_reward_to_go_gives_the_kl_gradient(loss, kl_gradient):
  algorithm = catalogue.self_play(TAU)._replace(loss=loss)
  gradient = exact.make_ascent(algorithm, exact.two_tokens)(exact.TWO_TOKENS, np.zeros((4, 4)))
  np.testing.assert_allclose(gradient.ravel() / -TAU, kl_gradient, atol=6e-7)


def test_kl_gradient_over_two_tokens():
  def kl(logits):
    log_pi = exact.two_tokens(logits).sum(-1)
    log_mu = exact.two_tokens(exact.TWO_TOKENS['reference']).sum(-1)
    return jnp.exp(log_pi) @ (log_pi - log_mu)

  value, gradient = tiny.jit(jax.value_and_grad(kl))(exact.TWO_TOKENS['policy'])
  np.testing.assert_allclose(value, 0.761594, atol=6e-7)
  np.testing.assert_allclose(gradient.ravel(), (0.380797, -0.380797, *SECOND_TOKEN), atol=6e-7)
