"""Losses of algorithms in rounds, on responses whose log-ratios are computed by hand."""

from math import exp, log

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.algorithms import catalogue
from nlhf_jax.structs import Comparison, Responses, Scores
from tests.algorithms.pairs import (
  WIN,
  compared,
  gradient,
  is_close,
  logistic,
  sigmoid,
  value,
)

# --- Regressions of log-ratios ---


def points(algorithm, payoff, policy=(-1.75, -2.75), **others):
  """The loss of two left responses, scored as a whole, after the algorithm's own selection."""
  slots = {'policy': policy, **others}
  slots = {slot: Scores(jnp.array(rho)[None, :, None]) for slot, rho in slots.items()}
  comparison = compared(WIN)._replace(right=None, payoff=jnp.array(payoff)[None])
  return np.array(algorithm.loss(slots, comparison)[0])


# Win rates .8 and .35 over three samples.
WIN_RATES = [[0.0, 0.5, 0.4], [-0.5, 0.0, 0.05]]


def test_sppo_is_twice_the_released_loss():
  values = points(catalogue.sppo(10.0, 3, 1, 0.5), WIN_RATES, snapshot=(-2.25, -2.25))
  is_close(values, [(0.5 - 10 * (0.8 - 0.5)) ** 2, (-0.5 - 10 * (0.35 - 0.5)) ** 2])
  beta = 1 / 10
  released = ((0.5 - (0.8 - 0.5) / beta) ** 2 + (-0.5 - (0.35 - 0.5) / beta) ** 2) / 2
  is_close(values.mean(), released)  # which the mean over the two responses brings back


def selected(algorithm, payoff):
  """Tokens and payoff that the algorithm selects from responses 0, 1, 2, ..., all against all."""
  payoff = jnp.array(payoff)[None]
  tokens = jnp.arange(payoff.shape[1])[None, :, None]
  responses = Responses(tokens, jnp.ones_like(tokens, bool))
  comparison = Comparison(compared(WIN).prompts, responses, responses, payoff)
  chosen = algorithm.select(comparison, jax.random.key(0))
  return chosen.left.tokens[0, :, 0].tolist(), chosen


# Win rates, each with itself: .5 + (0, .15, -.15).
THREE = [[0.0, -0.3, 0.3], [0.3, 0.0, 0.15], [-0.3, -0.15, 0.0]]


@pytest.mark.parametrize('log_z', [0.5, 0.54, 0.0])
def test_sppo_subtracts_its_constant(log_z):
  algorithm = catalogue.sppo(4.0, 3, 1, log_z)
  chosen, comparison = selected(algorithm, THREE)
  assert chosen == [1, 2]
  values = points(algorithm, comparison.payoff[0], snapshot=(-2.25, -2.25))
  is_close(values, [(0.5 - 4 * (0.65 - log_z)) ** 2, (-0.5 - 4 * (0.35 - log_z)) ** 2])


def test_sppo_estimates_log_z_on_the_samples():
  algorithm = catalogue.sppo_estimated(4.0, 3, 1)
  chosen, comparison = selected(algorithm, THREE)
  assert chosen == [1, 2]
  log_z = log((1 + exp(0.6) + exp(-0.6)) / 3)  # of exp(4 u)
  values = points(algorithm, comparison.payoff[0], snapshot=(-2.25, -2.25))
  is_close(values, [(0.5 - 0.6 + log_z) ** 2, (-0.5 + 0.6 + log_z) ** 2])


def test_sppo_pair_with_votes_is_the_hard_form():
  algorithm = catalogue.sppo_pair(10.0, 3, 1)
  certain = np.sign(THREE) / 2
  chosen, comparison = selected(algorithm, certain)
  assert chosen == [1, 2]
  values = points(algorithm, comparison.payoff[0], snapshot=(-2.25, -2.25))
  beta = 1 / 10
  is_close(values.sum(), (0.5 - 1 / (2 * beta)) ** 2 + (-0.5 + 1 / (2 * beta)) ** 2)


def test_sppo_pair_targets_are_complementary():
  algorithm = catalogue.sppo_pair(4.0, 3, 1)
  _, comparison = selected(algorithm, THREE)
  values = points(algorithm, comparison.payoff[0], snapshot=(-2.25, -2.25))
  is_close(values, [(0.5 - 4 * 0.15) ** 2, (-0.5 + 4 * 0.15) ** 2])


def test_gpo_regresses_on_log_odds():
  algorithm = catalogue.gpo(4.0, 3, 1)
  chosen, comparison = selected(algorithm, THREE)
  assert chosen == [1, 2]
  a, b = log(0.8 / 0.2), log(0.65 / 0.35)
  values = points(algorithm, comparison.payoff[0], snapshot=(-2.25, -2.25))
  is_close(values, [(0.5 - 4 * (a + b) / 3) ** 2, (-0.5 + 4 * (a + b) / 3) ** 2])


@pytest.mark.parametrize('reference', [(-3.0, -2.0), (-30.0, 17.25)])
def test_rspo_adds_two_penalties_to_sppo(reference):
  rspo = catalogue.rspo(10.0, 3, 1, forward=0.1, reverse=0.2)
  values = points(rspo, WIN_RATES, snapshot=(-2.25, -2.25), reference=reference)
  won, lost = -1.75 - reference[0], -2.75 - reference[1]
  desired = [
    (0.5 - 3) ** 2 + 0.1 * exp(-won) + 0.2 * won**2,
    (-0.5 + 1.5) ** 2 + 0.1 * exp(min(-lost, 10)) + 0.2 * lost**2,  # -lost = 20 in the second case
  ]
  is_close(values, desired)


def mean_payoff_of(eta):
  """(rho_t(y) - rho_t(y') - eta (u(y) - u(y')))^2 at a difference of .3, and a constant."""
  return (1 - eta * 0.3) ** 2 + (eta / 2) ** 2 * (1 - (2 * 0.3) ** 2)


def test_rebel_is_a_square_plus_a_constant():
  is_close(value(catalogue.rebel(0.5, 1), 0.3), mean_payoff_of(0.5))
  left, right = gradient(catalogue.rebel(0.5, 1), 0.3)
  is_close(left, np.full(3, 2 * (1 - 0.15)))
  is_close(right, np.full(3, -2 * (1 - 0.15)))


@pytest.mark.parametrize('difference', [-1.0, 0.8, 4.0])
def test_mean_payoff_differences_may_exceed_one_half(difference):
  left, _ = gradient(catalogue.rebel(0.5, 1), difference)
  is_close(left, np.full(3, 2 * (1 - 0.5 * difference)))


def test_egpo_target_is_the_difference_over_tau():
  left, _ = gradient(catalogue.egpo(0.2, 2.0), 0.3)
  is_close(left, np.full(3, 2 * (2 - 0.3 / 0.2)))


def test_dno_labels_are_sigmoids_of_differences():
  p = sigmoid(0.3)
  is_close(value(catalogue.dno(2.0, 1), 0.3), p * logistic(2) + (1 - p) * logistic(-2))
  left, _ = gradient(catalogue.dno(2.0, 1), 0.3)
  is_close(left, np.full(3, 2 * (sigmoid(2) - p)))  # zero where 2 times the lead is .3
