"""Policy-gradient algorithms, run exactly on matrix games, converge to known fixed points."""

import functools

import numpy as np
import pytest
from scipy.special import expit, logit, logsumexp

from nlhf_jax.algorithms import catalogue
from tests.laws import exact
from tests.laws.exact import natural
from tests.laws.theory import kl

pytestmark = pytest.mark.usefixtures('float64')


def reply(preference, log_pi, tau, mu=exact.MU):
  """log of mu exp(P(y > pi) / tau), and the log of its normaliser."""
  log_reply = np.log(mu) + preference @ np.exp(log_pi) / tau
  return log_reply, logsumexp(log_reply)


def exploitability(preference, log_pi, tau):
  """max over pi' of P_tau(pi' > pi), less 1/2 (arXiv 2312.00886, eq. 2); zero only at the Nash."""
  _, log_sum = reply(preference, log_pi, tau)
  return tau * (log_sum + kl(log_pi, np.log(exact.MU))) - 0.5


@functools.cache
def fixed_point_finder(make, *arguments, rate=1.0):
  """The fixed point of a game, by a program compiled once for each number of actions."""
  return exact.make_find_fixed_point(make(*arguments), natural(rate), 4000)


# The game of appendix C.2 at tau = .1: beta, stationary pi, KL(pi*_tau, pi), exploitability. A
# fixed beta > 0 is biased, at its worst when it is all there is: the best response to mu.
BIASED = [
  (0.0, (0.603040, 0.173806, 0.223154), 0.0, 0.0),
  (0.125, (0.614098, 0.161560, 0.224341), 0.000556, 0.000086),
  (0.25, (0.627078, 0.150046, 0.222876), 0.002256, 0.000343),
  (0.375, (0.642102, 0.139765, 0.218133), 0.005115, 0.000768),
  (0.5, (0.659176, 0.131115, 0.209709), 0.009182, 0.001368),
  (0.75, (0.698369, 0.119469, 0.182162), 0.021945, 0.003250),
  (1.0, (0.739320, 0.115113, 0.145567), 0.044081, 0.006297),
]
NASH = np.array([0.60304022, 0.17380593, 0.22315385])
GAMES = [
  (exact.random_game(seed), np.random.default_rng(seed).dirichlet(np.full(4, 5.0)))
  for seed in range(8)
]


@pytest.mark.parametrize(('beta', 'stationary', 'divergence', 'gap'), BIASED)
def test_nash_md_pg_converges_to_its_biased_point(beta, stationary, divergence, gap):
  slots = fixed_point_finder(catalogue.nash_md_pg, beta, 0.1)(exact.AGGREGATE)
  log_pi = slots['policy']
  np.testing.assert_allclose(np.exp(log_pi), stationary, atol=6e-7)
  np.testing.assert_allclose(kl(np.log(NASH), log_pi), divergence, atol=6e-7)
  np.testing.assert_allclose(exploitability(exact.AGGREGATE, log_pi, 0.1), gap, atol=6e-7)
  np.testing.assert_array_equal(slots['reference'], np.log(exact.MU))


@pytest.mark.parametrize(
  ('preference', 'tau', 'nash'),
  [
    (exact.AGGREGATE, 0.1, NASH),
    (exact.AGGREGATE, 1.0, (0.61811999, 0.27585643, 0.10602359)),
    (exact.raters(0.1), 0.1, (0.45703149, 0.44122526, 0.10174325)),
    (exact.BRADLEY_TERRY, 0.1, (0.03447267, 0.95196432, 0.01356302)),
    (exact.ROCK_PAPER_SCISSORS, 0.1, (0.43206532, 0.23032931, 0.33760536)),
  ],
)
def test_self_play_converges_to_the_regularised_nash(preference, tau, nash):
  log_pi = fixed_point_finder(catalogue.self_play, tau, rate=min(1.0, 0.5 / tau))(preference)[
    'policy'
  ]
  np.testing.assert_allclose(np.exp(log_pi), nash, atol=6e-9)
  assert abs(exploitability(preference, log_pi, tau)) < 1e-9


@pytest.mark.parametrize('rate', [0.02, 0.3])
def test_nash_ema_pg_converges_to_the_regularised_nash(rate):
  slots = fixed_point_finder(catalogue.nash_ema_pg, rate, 0.1)(exact.AGGREGATE)
  np.testing.assert_allclose(np.exp(slots['policy']), NASH, atol=6e-9)
  np.testing.assert_allclose(np.exp(slots['average']), NASH, atol=6e-9)
  np.testing.assert_array_equal(slots['reference'], np.log(exact.MU))


def test_best_response_converges_to_the_closed_form():
  find_fixed_point = fixed_point_finder(catalogue.best_response, 0.3)
  for preference, mu in GAMES:
    log_reply, log_sum = reply(preference, np.log(mu), 0.3, mu)
    log_pi = find_fixed_point(preference, mu)['policy']
    np.testing.assert_allclose(log_pi, log_reply - log_sum, rtol=0, atol=1e-8)


@pytest.mark.parametrize('beta', [0.125, 0.5])
def test_mixture_is_the_nash_at_higher_temperature(beta):
  slots = fixed_point_finder(catalogue.nash_md_pg, beta, 0.1)(exact.raters(0.1))
  mixture = exact.mixed({'policy': 1 - beta, 'reference': beta}, slots)
  nash = fixed_point_finder(catalogue.self_play, 0.1 / (1 - beta))(exact.raters(0.1))['policy']
  np.testing.assert_allclose(mixture, nash, atol=1e-8)


@pytest.mark.parametrize('beta', [0.0, 0.5, 1.0])
def test_two_actions_have_a_closed_form(beta):
  p, tau = 0.7, 0.1
  preference = np.array([[0.5, p], [1 - p, 0.5]])
  find_fixed_point = fixed_point_finder(catalogue.nash_md_pg, beta, tau)
  for first, nash in ((0.5, 0.880797), (0.2, 0.648786)):
    pi = np.exp(find_fixed_point(preference, np.array([first, 1 - first]))['policy'])
    np.testing.assert_allclose(pi[0], nash, atol=6e-7)
    np.testing.assert_allclose(pi[0], expit(logit(first) + (p - 0.5) / tau), atol=1e-8)


@pytest.mark.parametrize('tau', [0.1, 0.3])
def test_nash_kl_is_at_most_half_over_tau(tau):
  find_fixed_point = fixed_point_finder(catalogue.self_play, tau)
  for preference, mu in GAMES:
    log_pi = find_fixed_point(preference, mu)['policy']
    log_reply, log_sum = reply(preference, log_pi, tau, mu)
    np.testing.assert_allclose(log_pi, log_reply - log_sum, rtol=0, atol=1e-8)
    assert 0 < kl(log_pi, np.log(mu)) <= 1 / (2 * tau)
