"""The laws of fixed points have teeth: faults of sign, scale and gradient move the fixed point."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.algorithm import Algorithm
from nlhf_jax.algorithms.losses import (
  chi_squared,
  log_ratio,
  pairwise_loss,
  rho,
  weighted_sum,
  winner_likelihood,
)
from nlhf_jax.algorithms.losses import log_odds_per_token as log_odds
from nlhf_jax.algorithms.selection import (
  chain,
  choose_one,
  gate_payoff,
  leave_out_self,
  map_payoff,
  mean_payoff,
  standardise,
  weigh_by_strength,
)
from tests.laws import exact, theory, tiny
from tests.laws.exact import natural
from tests.laws.test_fixed_points import GAMES, UNEVEN
from tests.laws.test_further_methods import NASH, RESTS, UNIFORM, alike
from tests.laws.test_offline_algorithms import APO_DOWN_TOP, expected_loss

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


# --- Of the algorithms that others published since ---


class Fault(NamedTuple):
  """An algorithm, the same with a fault, and where the first of them rests in a game."""

  sound: Algorithm
  faulty: Algorithm
  rest: tuple[float, ...]
  game: tuple[np.ndarray, np.ndarray] = GAMES['cycle']


def scaled(factor):
  """Multiplies the payoff."""
  return lambda comparison, key: comparison._replace(payoff=factor * comparison.payoff)


def square_as_it_is(comparison, key):
  """P^2, of which no odd part is taken."""
  del key
  return comparison._replace(payoff=(comparison.payoff + 0.5) ** 2)


def loser_likelihood(scores, comparison):
  return winner_likelihood(scores, negative(comparison, None))


def clipped_loss(ratio_of, sign):
  """The clipped policy gradient at tau = .1, with another ratio, or price of another sign."""

  def loss(scores, comparison):
    ratio = ratio_of(jnp.exp(rho(scores, 'left', {'snapshot': 1.0})))[:, :, None]
    price = 0.1 * rho(scores, 'left', {'reference': 1.0})[:, :, None]
    advantage = lax.stop_gradient(comparison.payoff - sign * price)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)

  return loss


def standardised_by_population(comparison, key):
  """The spread with K in its denominator."""
  del key
  gains = mean_payoff(comparison)
  centred, spread = gains - gains.mean(axis=1, keepdims=True), gains.std(axis=1, keepdims=True)
  return comparison._replace(payoff=(centred / (spread + 1e-12))[:, :, None])


REWARD = np.array([1.0, 0.0, -1.0])
REWARDS = 0.5 + REWARD[:, None] - REWARD, UNIFORM
PSI, CLIPPED = catalogue.psi_self_play(0.1, 'square'), catalogue.clipped_self_play(0.1, 0.2, 2)
EXO, CPO = catalogue.rpo_forward(0.5, 2 * np.log(9)), catalogue.cpo(0.5, 1.0)
GATED = SELF_PLAY._replace(select=gate_payoff(alike))
GATED_REST = (0.3193781093, 0.3283583786, 0.3522635121)
STANDARDISED = catalogue.standardised_self_play(0.1, 2)._replace(select=standardise(1e-12))
BEST_OF_K = catalogue.best_of_k(0.1, 2)
BEST_OF_K_REST = (0.8315301993, 0.1246287361, 0.0438410647)
CPO_PAIRS = pairwise_loss(jax.nn.softplus, beta=0.5)
EXO_REST, CPO_REST = RESTS['rpo_forward, EXO'].cycle, RESTS['cpo'].cycle
NEW_FAULTS = {
  'psi, no odd part': Fault(PSI, PSI._replace(select=square_as_it_is), NASH[0]),
  'psi, not halved': Fault(
    PSI, PSI._replace(select=chain(map_payoff('square'), scaled(2.0))), NASH[0]
  ),
  'gate, reversed': Fault(
    GATED, GATED._replace(select=gate_payoff(lambda c: 1 - alike(c))), GATED_REST
  ),
  'gate, twice': Fault(
    GATED, GATED._replace(select=chain(gate_payoff(alike), gate_payoff(alike))), GATED_REST
  ),
  'exo, half the target': Fault(EXO, catalogue.rpo_forward(0.5, np.log(9)), EXO_REST),
  'exo, KL turned around': Fault(EXO, catalogue.rpo_backward(0.5, 2 * np.log(9)), EXO_REST),
  'cpo, likelihood of the loser': Fault(
    CPO, CPO._replace(loss=weighted_sum((1.0, CPO_PAIRS), (1.0, loser_likelihood))), CPO_REST
  ),
  'cpo, likelihood scaled by beta': Fault(
    CPO, CPO._replace(loss=weighted_sum((1.0, CPO_PAIRS), (0.5, winner_likelihood))), CPO_REST
  ),
  'clipped, ratio not differentiated': Fault(
    CLIPPED, CLIPPED._replace(loss=clipped_loss(lax.stop_gradient, 1)), NASH[0]
  ),
  'clipped, sign of the price': Fault(
    CLIPPED, CLIPPED._replace(loss=clipped_loss(lambda ratio: ratio, -1)), NASH[0]
  ),
  'standardised, by the population': Fault(
    STANDARDISED,
    STANDARDISED._replace(select=standardised_by_population),
    (0.3025943336, 0.3241170751, 0.3732885912),
  ),
  'best of k, penalty differentiated': Fault(
    BEST_OF_K, BEST_OF_K._replace(loss=without_stop_gradient), BEST_OF_K_REST, REWARDS
  ),
  'best of k, times k + 1': Fault(
    BEST_OF_K,
    BEST_OF_K._replace(select=chain(choose_one, scaled(3.0))),
    BEST_OF_K_REST,
    REWARDS,
  ),
}


@pytest.mark.parametrize('name', NEW_FAULTS)
def test_a_fault_moves_the_rest_of_a_new_algorithm(name):
  fault = NEW_FAULTS[name]
  shares = UNEVEN if fault.sound.left == 'data' else None
  found = last_policy(fault.sound, *fault.game, shares)
  np.testing.assert_allclose(found, fault.rest, rtol=0, atol=1e-5)
  found = last_policy(fault.faulty, *fault.game, shares)
  assert not abs(found - np.array(fault.rest)).max() < 1e-3, found  # NaN is a difference


def test_weights_that_sum_to_one_shrink_the_payoff_of_nash_rejection():
  algorithm = catalogue.nash_rejection(0.1, 1, 3)
  right = last_policy(algorithm, *GAMES['cycle'])
  third = algorithm._replace(select=chain(algorithm.select, scaled(1 / 3)))
  wrong = last_policy(third, *GAMES['cycle'])
  assert not abs(wrong - right).max() < 1e-2


def apo_parts(scores):
  """sigmoid(beta rho) of both sides, and beta (rho(y) - rho(y')), at beta = .5."""
  left, right = (0.5 * rho(scores, side, {'reference': 1.0}) for side in ('left', 'right'))
  left, right = left[:, :, None], right[:, None, :]
  return jax.nn.sigmoid(left), jax.nn.sigmoid(right), left - right


def apo_zero_on_both(scores, comparison):
  """APO-zero that lowers the winner, too."""
  del comparison
  left, right, _ = apo_parts(scores)
  return left + right


def apo_down(scores, comparison, lead_of):
  """APO-down with another lead."""
  (left, right, lead), p = apo_parts(scores), comparison.payoff + 0.5
  lead = lead_of(lead)
  return p * (left - jax.nn.sigmoid(lead)) + (1 - p) * (right - jax.nn.sigmoid(-lead))


def test_a_fault_of_apo_zero_ends_at_another_response():
  ends = []
  for loss in (catalogue.apo_zero(0.5).loss, apo_zero_on_both):
    algorithm = catalogue.apo_zero(0.5)._replace(loss=loss)
    path, _ = exact.make_run(algorithm, optax.sgd(10.0), 10000)(*GAMES['cycle'], UNEVEN)
    ends.append(path[-1].argmax())
  assert ends[0] != ends[1]


@pytest.mark.parametrize('lead_of', [jnp.negative, lax.stop_gradient])
def test_a_fault_of_apo_down_moves_its_stationary_point(lead_of):
  at = np.log(APO_DOWN_TOP)
  sound = tiny.jit(jax.grad(expected_loss(catalogue.apo_down(0.5).loss)))(at)
  np.testing.assert_allclose(sound, 0, rtol=0, atol=6e-11)
  faulty = tiny.jit(jax.grad(expected_loss(partial(apo_down, lead_of=lead_of))))(at)
  assert abs(faulty).max() > 1e-3
