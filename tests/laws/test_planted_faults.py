"""The laws of fixed points have teeth: faults of sign, scale and gradient move the fixed point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.losses import (
  chi_squared,
  log_ratio,
  pairwise_loss,
  weighted_sum,
  winner_likelihood,
)
from nlhf_jax.algorithms.losses import log_odds_per_token as log_odds
from nlhf_jax.algorithms.selection import chain, choose_one, leave_out_self, weigh_by_strength
from tests.laws import exact, theory
from tests.laws.exact import natural
from tests.laws.test_fixed_points import GAMES, UNEVEN
from tests.laws.test_further_methods import NASH, RESTS, UNIFORM

pytestmark = [pytest.mark.usefixtures('float64'), pytest.mark.slow]


def negative(comparison, key):
  """Turns the payoff around."""
  del key
  return comparison._replace(payoff=-comparison.payoff)


def without_stop_gradient(scores, comparison):
  """The policy gradient with a penalty that is differentiated through its log-ratio, too."""
  log_pi = scores['policy'].left
  penalty = 0.1 * log_ratio(scores, 'left', {'reference': 1.0})
  return (
    jnp.sum(log_pi * penalty, axis=-1, keepdims=True)
    - log_pi.sum(-1, keepdims=True) * comparison.payoff
  )


def reversed_odds(ratio, tokens):
  return -log_odds(ratio, tokens)


def square(margin, **more):
  return pairwise_loss(jnp.square, margin=margin, **more)


SELF_PLAY, OMWU = catalogue.self_play(0.1), catalogue.omwu(1.0, 1)
FAULTS = {
  'self_play, penalty differentiated': (SELF_PLAY._replace(loss=without_stop_gradient), NASH[0]),
  'self_play, sign of the payoff': (SELF_PLAY._replace(select=negative), NASH[0]),
  'self_play_group, scaled twice': (
    catalogue.self_play_group(0.1, 3)._replace(select=chain(leave_out_self, leave_out_self)),
    NASH[0],
  ),
  'chi_po, no chi': (
    catalogue.chi_po(0.5, 2.0)._replace(loss=catalogue.dpo(0.5).loss),
    RESTS['chi_po'].cycle,
  ),
  'chi_po, exponent cut at 0': (
    catalogue.chi_po(0.5, 2.0)._replace(
      loss=pairwise_loss(jax.nn.softplus, beta=0.5, value=chi_squared(0.0), reference=1.0)
    ),
    RESTS['chi_po'].cycle,
  ),
  'rpo_squared, twice the target': (
    catalogue.rpo_squared(0.5, 2.0)._replace(loss=square(2.0, beta=0.5, reference=1.0)),
    RESTS['rpo_squared'].cycle,
  ),
  'rpo_forward, sign of the target': (
    catalogue.rpo_forward(0.5, 2.0)._replace(select=negative),
    RESTS['rpo_forward'].cycle,
  ),
  'orpo, odds reversed': (
    catalogue.orpo(1.0)._replace(
      loss=weighted_sum(
        (1.0, winner_likelihood), (1.0, pairwise_loss(jax.nn.softplus, value=reversed_odds))
      )
    ),
    RESTS['orpo'].cycle,
  ),
  'omwu, opponents exchanged': (
    OMWU._replace(right=OMWU.right[::-1]),
    RESTS['omwu'].cycle,
  ),
  'omwu, fitted around the older policy': (
    OMWU._replace(loss=square(0.5, history_2=1.0)),
    RESTS['omwu'].cycle,
  ),
  'chi_self_play, half the target': (
    catalogue.chi_self_play(0.1)._replace(
      loss=square(1 / 0.4, value=chi_squared(20.0), reference=1.0)
    ),
    RESTS['chi_self_play'].cycle,
  ),
}


def last_policy(algorithm, preference, mu, shares=None):
  path, _ = exact.make_run(algorithm, natural(0.05), 4000)(preference, mu, shares)
  return np.exp(path[-1])


@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_moves_the_fixed_point(name):
  algorithm, right = FAULTS[name]
  shares = UNEVEN if algorithm.left == 'data' else None
  found = last_policy(algorithm, *GAMES['cycle'], shares)
  assert not abs(found - right).max() < 1e-3, found  # NaN is a difference


def test_weights_of_the_wrong_sign_are_no_best_response():
  algorithm = catalogue.nash_rejection(0.1, 2, 3)
  right = last_policy(algorithm, *GAMES['cycle'])
  wrong = last_policy(algorithm._replace(select=weigh_by_strength(-0.1)), *GAMES['cycle'])
  assert not abs(wrong - right).max() < 1e-2
  assert theory.gap(exact.CYCLE, right) < theory.gap(exact.CYCLE, wrong)


def test_choices_of_the_wrong_sign_prefer_the_worst():
  reward = np.array([1.0, 0.0, -1.0])
  algorithm = catalogue.best_of_k(0.1, 2)
  preference = 0.5 + reward[:, None] - reward
  right = last_policy(algorithm, preference, UNIFORM)
  wrong = last_policy(algorithm._replace(select=chain(negative, choose_one)), preference, UNIFORM)
  assert right.argmax() == 0
  assert wrong.argmax() == 2
