"""Algorithms that learn from data: printed numbers, closed forms, and flipped labels."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from scipy.optimize import brentq
from scipy.special import expit, logit, softmax

from nlhf_jax.algorithms import catalogue
from nlhf_jax.structs import Comparison, Responses
from nlhf_jax.training.update import initial_state, make_update
from tests.laws import exact, test_fixed_points, test_further_methods, test_successors, tiny
from tests.laws.exact import natural

pytestmark = pytest.mark.usefixtures('float64')

ALIKE = np.full((2, 2), 1 / 4)


def two_actions(first):
  """P(y_1 > y_2) = first."""
  return np.array([[0.5, first], [1 - first, 0.5]])


def test_preference_model_converges_to_the_preference():
  preference = exact.random_game(seed=3)
  left, right = (places.reshape(-1, 1, 1) for places in np.indices((4, 4)))
  sides = (Responses(places, np.ones_like(places, bool)) for places in (left, right))
  data = Comparison(None, *sides, jnp.asarray(preference - 0.5)[left, right])
  algorithm = catalogue.preference_model()
  score = lambda logits, data: logits[data.left.tokens, data.right.tokens.swapaxes(1, 2)]
  update = make_update(algorithm, score, optax.sgd(32.0), lambda *_: {})
  start = initial_state(algorithm, jnp.zeros((4, 4)), optax.sgd(32.0))
  step = lambda state, _: (update(state, data, jax.random.key(0))[0], None)
  learned = tiny.jit(lambda state: lax.scan(step, state, length=2000)[0])(start).params['policy']
  np.testing.assert_allclose(jax.nn.sigmoid(learned), preference, rtol=0, atol=1e-9)


# --- Bradley-Terry: the best reward depends on how pairs were drawn (arXiv 2312.00886, app. B) ---

SAMPLING = [(1 / 3, 1 / 3, 1 / 3), (0.6, 0.3, 0.1), (0.1, 0.3, 0.6), (0.25, 0.5, 0.25)]
REWARDS = {  # of y_2 and y_3, that of y_1 being 0, where pairs are drawn by SAMPLING
  'aggregate': (
    exact.AGGREGATE,
    [(0, 0), (-0.475869, 0.067956), (0.543825, 0.067956), (-0.167639, -0.335278)],
  ),
  'raters': (
    exact.raters(0.1),
    [(-0.200502, -0.100251), (0.268756, -0.168514), (-0.756917, -0.172391), (-0.033467, 0.234665)],
  ),
  'bradley_terry': (exact.BRADLEY_TERRY, [(2.197225, 0.693147)] * 4),
}


@pytest.mark.parametrize('name', REWARDS)
def test_a_reward_model_learns_the_printed_rewards(name):
  preference, printed = REWARDS[name]
  find_fixed_point = exact.make_find_fixed_point(catalogue.reward_model(), natural(0.3), 4000)
  for pi, rewards in zip(np.array(SAMPLING), printed, strict=True):
    learned = find_fixed_point(preference, np.full(3, 1 / 3), np.outer(pi, pi))['policy']
    learned = learned - learned[0]
    np.testing.assert_allclose(learned[1:], rewards, rtol=0, atol=6e-7)
    of_bradley_terry = expit(learned[:, None] - learned)
    np.testing.assert_allclose(of_bradley_terry @ pi, preference @ pi, rtol=0, atol=1e-9)


@pytest.mark.parametrize('beta', [0.3, 1.0])
def test_dpo_converges_to_mu_exp_reward(beta):
  find_fixed_point = exact.make_find_fixed_point(catalogue.dpo(beta), natural(0.3 / beta), 6000)
  for pi, rewards in zip(np.array(SAMPLING), REWARDS['aggregate'][1], strict=True):
    optimum = softmax(np.log(exact.MU) + np.array([0, *rewards]) / beta)
    found = np.exp(find_fixed_point(exact.AGGREGATE, exact.MU, np.outer(pi, pi))['policy'])
    np.testing.assert_allclose(found, optimum, rtol=0, atol=2e-6)


# --- Labels ---


def fixed_point_policy(algorithm, rate=0.3):
  find_fixed_point = exact.make_find_fixed_point(algorithm, natural(rate), 4000)
  return lambda *game: np.exp(find_fixed_point(*game)['policy'])


def test_robust_dpo_and_cdpo_under_label_flips():
  epsilon, shares = 0.1, test_fixed_points.UNEVEN
  flipped = exact.CYCLE * (1 - epsilon) + (1 - exact.CYCLE) * epsilon
  dpo = fixed_point_policy(catalogue.dpo(0.5))
  robust = fixed_point_policy(catalogue.robust_dpo(0.5, epsilon))(flipped, exact.MU, shares)
  clean = dpo(exact.CYCLE, exact.MU, shares)
  np.testing.assert_allclose(robust, clean, rtol=0, atol=1e-9)
  softened = fixed_point_policy(catalogue.cdpo(0.5, epsilon))(exact.CYCLE, exact.MU, shares)
  fooled = dpo(flipped, exact.MU, shares)
  np.testing.assert_allclose(softened, fooled, rtol=0, atol=1e-9)
  assert abs(fooled - clean).max() > 0.01


def test_certain_labels_diverge_for_dpo_only():
  mu, lead = np.array([0.3, 0.7]), lambda log_pi: log_pi[0] - log_pi[1] - logit(0.3)
  path, _ = exact.make_run(catalogue.dpo(0.5), optax.sgd(3.0), 4000)(two_actions(1.0), mu, ALIKE)
  assert lead(path[-1]) > lead(path[len(path) // 2]) + 0.3 > 4
  ipo = fixed_point_policy(catalogue.ipo(0.5), 0.05)(two_actions(1.0), mu, ALIKE)
  np.testing.assert_allclose(lead(np.log(ipo)), 1.0, rtol=0, atol=1e-9)  # P / (2 tau) - 0


# --- Closed forms of two actions ---


@pytest.mark.parametrize('gamma', [0.0, 0.5])
def test_simpo_fixed_point_solves_a_quadratic(gamma):
  p, beta = 0.8, 2.0
  pi = fixed_point_policy(catalogue.simpo(beta, gamma))(two_actions(p), np.array([0.3, 0.7]), ALIKE)
  g = np.exp(-gamma)
  odds = ((2 * p - 1) + np.sqrt((2 * p - 1) ** 2 + 4 * p * (1 - p) * g**2)) / (2 * (1 - p) * g)
  np.testing.assert_allclose(logit(pi[0]), np.log(odds) / beta, rtol=0, atol=1e-9)


@pytest.mark.parametrize('first', [0.3, 0.8])
def test_kto_fixed_point_balances_both_terms(first):
  beta, desirable, undesirable, mu = 0.7, 2.0, 1.0, np.array([first, 1 - first])
  algorithm = catalogue.kto(beta, desirable, undesirable)
  pi = fixed_point_policy(algorithm)(two_actions(0.7), mu, ALIKE)
  wins = np.array([0.6, 0.4])  # the share of a response's pairs that it wins, itself among them

  def imbalance(first):
    ratio = np.log([first, 1 - first]) - np.log(mu)
    lead = beta * (ratio - max(0, ratio.mean()))
    pull = (desirable * wins - undesirable * (1 - wins)) * expit(lead) * expit(-lead)
    return (1 - first) * pull[0] - first * pull[1]

  np.testing.assert_allclose(pi[0], brentq(imbalance, 1e-3, 1 - 1e-3, xtol=1e-14), atol=1e-9)


@pytest.mark.parametrize('alpha', [0.0, 0.02])
def test_xpo_moves_further_with_larger_alpha(alpha):
  p, beta, mu = 0.8, 2.0, np.array([0.3, 0.7])
  find_fixed_point = exact.make_find_fixed_point(catalogue.xpo(alpha, beta), natural(0.3), 4000)
  pi = np.exp(find_fixed_point(two_actions(p), mu)['policy'])[0]
  reward = beta * (logit(pi) - logit(mu[0]))
  pull = beta * (p - expit(reward)) * (pi * mu[1] + (1 - pi) * mu[0])
  np.testing.assert_allclose(pull, alpha * (mu[0] - pi), rtol=0, atol=1e-9)
  if alpha == 0:
    np.testing.assert_allclose(reward, logit(p), rtol=0, atol=1e-9)
  else:
    assert reward > logit(p) + 0.01


def test_ipo_per_token_scales_with_length():
  # An example a pair: each action is a response of two tokens, the second of which is sure.
  left, right = (places.reshape(-1, 1, 1) for places in np.indices((3, 3)))
  two = np.ones((9, 1, 2), bool)
  sides = (Responses(np.repeat(places, 2, -1), two) for places in (left, right))
  payoff = jnp.asarray(exact.AGGREGATE - 0.5)[left, right]
  data, tau, optimizer = Comparison(None, *sides, payoff), 0.5, natural(0.05)
  found = {}
  for make in (catalogue.ipo, catalogue.ipo_per_token):
    update = make_update(make(tau), exact.make_score(), optimizer, lambda *_: {})
    state = initial_state(make(tau), jnp.log(jnp.asarray(exact.MU)), optimizer)
    step = lambda state, _, update=update: (update(state, data, jax.random.key(0))[0], None)
    state = tiny.jit(lambda s, step=step: lax.scan(step, s, length=4000)[0])(state)
    found[make] = jax.nn.softmax(state.params['policy'])
  wins = exact.AGGREGATE.mean(1)
  for make, tokens in ((catalogue.ipo, 1), (catalogue.ipo_per_token, 2)):
    closed = softmax(np.log(exact.MU) + tokens * wins / tau)
    np.testing.assert_allclose(found[make], closed, rtol=0, atol=1e-9)


# --- APO-down ---

APO_DOWN_TOP = np.array([0.3592303782, 0.4050897712, 0.2356798506])


def expected_loss(loss):
  """Logits -> the mean loss on the pairs `UNEVEN` of the cycle, with its mu as the reference."""
  left, right = (places.reshape(9, 1, 1) for places in np.indices((3, 3)))
  sides = (Responses(places, np.ones((9, 1, 1), bool)) for places in (left, right))
  data = Comparison(None, *sides, jnp.asarray(exact.CYCLE - 0.5)[left, right])
  reference = exact.make_score()(jnp.log(exact.CYCLE_MU), data)

  def value(logits):
    scores = {'policy': exact.make_score()(logits, data), 'reference': reference}
    return test_fixed_points.UNEVEN.ravel() @ loss(scores, data).ravel()

  return value


def test_apo_down_is_stationary_at_a_maximum_only():
  value = expected_loss(catalogue.apo_down(0.5).loss)
  slope, curvature = (tiny.jit(of(value))(np.log(APO_DOWN_TOP)) for of in (jax.grad, jax.hessian))
  np.testing.assert_allclose(slope, 0, rtol=0, atol=6e-11)
  flat = 0  # along a constant, which softmax does not see
  np.testing.assert_allclose(np.linalg.eigvalsh(curvature), (-0.0523, -0.0303, flat), atol=6e-5)


# --- No algorithm goes untested ---

# Algorithms whose law is not in a table -> the file that has it.
ELSEWHERE = {
  'preference_model': 'test_offline_algorithms.py',
  'sppo_estimated': 'test_rounds.py',
  'sppo_gated': 'test_further_methods.py',
  'gpo': 'test_rounds.py',
  'rso_hinge': 'test_rejection.py',
  'apo_zero': 'test_further_methods.py',
  'apo_down': 'test_further_methods.py',
  'standardised_self_play': 'test_further_methods.py',
  'psi_self_play': 'test_further_methods.py',
  'nash_rejection': 'test_further_methods.py',
  'best_of_k': 'test_further_methods.py',
  'clipped_self_play': 'test_groups_of_samples.py',
  'sppo_tempered': 'test_tempered_samples.py',
}


def test_every_offline_algorithm_is_tested():
  tables = [*test_fixed_points.LAWS, *test_successors.RUNS, *test_further_methods.RESTS]
  in_tables = {name.split(',')[0] for name in tables}
  assert set(catalogue.ALGORITHMS) == in_tables | set(ELSEWHERE)
  for name, file in ELSEWHERE.items():
    assert f'catalogue.{name}' in (Path(__file__).parent / file).read_text()
