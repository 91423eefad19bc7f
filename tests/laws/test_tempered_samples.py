"""Samples at a temperature: what rests where, by the temperature at which they are scored.

On the cycle of `test_fixed_points` at tau = .1; numbers were computed apart to ten digits.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.algorithm import mixture
from nlhf_jax.sampling.token import Filters, filter_logits
from tests.laws import exact, theory
from tests.laws.exact import natural
from tests.laws.test_groups_of_samples import (
  MU,
  NASH,
  PAYOFF,
  TAU,
  leave_one_out,
  listed_groups,
)
from tests.sampling.expected import filter_row

pytestmark = pytest.mark.usefixtures('float64')


def tempered(pi, temperature):
  return softmax(np.log(pi) / temperature)


@pytest.mark.parametrize(
  ('temperature', 'expected'),
  [
    (0.7, (0.2985915978, 0.2871680550, 0.4142403472)),
    (1.5, (0.2367760183, 0.2788581325, 0.4843658492)),
  ],
)
def test_tempered_self_play_rests_at_no_objective(temperature, expected):
  """Sampled at T and scored at 1, without a baseline: q_i advantage_i = c pi_i."""
  sampler = [mixture(policy=1 / temperature)]
  algorithm = catalogue.self_play(TAU)._replace(left=sampler, right=sampler)
  find = exact.make_find_fixed_point(algorithm, natural(0.1), 6000)
  pi = np.exp(find(exact.CYCLE, MU)['policy'])
  np.testing.assert_allclose(pi, expected, rtol=0, atol=1e-9)
  q = tempered(pi, temperature)
  ratio = q * (PAYOFF @ q - TAU * np.log(pi / MU)) / pi
  np.testing.assert_allclose(ratio, ratio[0], rtol=0, atol=1e-9)


# --- Scored at the temperature ---


@pytest.mark.parametrize(
  ('temperature', 'around_mu', 'around_tempered_mu'),
  [
    (
      0.7,
      (0.2929193666, 0.2964940663, 0.4105865671),
      (0.2491465760, 0.2782674870, 0.4725859370),
    ),
    (
      1.5,
      (0.2446053897, 0.2510466452, 0.5043479651),
      (0.2953318466, 0.2809656288, 0.4237025247),
    ),
  ],
)
def test_scored_at_its_temperature_the_tempered_policy_is_the_equilibrium(
  temperature, around_mu, around_tempered_mu
):
  """Of the update whose slots are all tempered, as `stages.make_policy_score` has them."""
  table = lambda logits: exact.one_token(logits / temperature)
  find = exact.make_find_fixed_point(catalogue.self_play(TAU), natural(0.1), 6000, table=table)
  pi = np.exp(find(exact.CYCLE, MU)['policy'])
  q = tempered(pi, temperature)
  np.testing.assert_allclose(q, around_tempered_mu, rtol=0, atol=6e-11)
  nash = theory.regularised(TAU)
  np.testing.assert_allclose(q, nash(exact.CYCLE, tempered(MU, temperature)), rtol=0, atol=1e-9)
  # A reference whose tempered distribution is mu stands for one that is scored at temperature 1.
  pi = np.exp(find(exact.CYCLE, tempered(MU, 1 / temperature))['policy'])
  np.testing.assert_allclose(pi, around_mu, rtol=0, atol=6e-11)
  q = tempered(pi, temperature)
  np.testing.assert_allclose(q, nash(exact.CYCLE, MU), rtol=0, atol=1e-9)


# --- Scored at temperature 1: what a program does that changes its sampler alone ---


@pytest.mark.parametrize(
  ('temperature', 'expected'),
  [
    (0.7, (0.2994457246, 0.2859958401, 0.4145584353)),
    (1.5, (0.2364543188, 0.2809904002, 0.4825552810)),
  ],
)
def test_a_baseline_makes_the_policy_a_reply_to_its_tempered_self(temperature, expected):
  """So do importance weights pi / q on the left; weights on both sides mend what T = 1 broke."""

  def rest(force):
    return theory.balanced(lambda log_pi, *_: force(np.exp(log_pi), log_pi - np.log(MU)))(
      exact.CYCLE, MU
    )

  def with_baseline(pi, rho):
    q, groups = tempered(pi, temperature), listed_groups(2)
    gains = leave_one_out((PAYOFF @ q - TAU * rho)[groups])
    chance = np.prod(q[groups], axis=1)
    by_action = [chance @ np.where(groups == a, gains, 0).mean(axis=1) for a in range(3)]
    return np.array(by_action) - pi * (chance @ gains.mean(axis=1))

  def weighted(opponent_of):
    def force(pi, rho):
      value = PAYOFF @ opponent_of(pi) - TAU * rho
      return pi * (value - pi @ value)

    return force

  by_baseline = rest(with_baseline)
  np.testing.assert_allclose(by_baseline, expected, rtol=0, atol=6e-11)
  on_the_left = rest(weighted(lambda pi: tempered(pi, temperature)))
  np.testing.assert_allclose(on_the_left, expected, rtol=0, atol=6e-11)
  reply = np.log(MU) + PAYOFF @ tempered(by_baseline, temperature) / TAU
  np.testing.assert_allclose(by_baseline, softmax(reply), rtol=0, atol=1e-9)
  on_both = rest(weighted(lambda pi: pi))
  np.testing.assert_allclose(on_both, NASH[TAU], rtol=0, atol=6e-11)


# --- Top-p ---

# d beats all; of the others a beats b, b beats c, and c beats a.
LED = np.array(
  [[0.5, 0.6, 0.4, 0.1], [0.4, 0.5, 0.6, 0.1], [0.6, 0.4, 0.5, 0.1], [0.9] * 3 + [0.5]]
)
LED_MU = np.array([0.5, 0.3, 0.15, 0.05])


def run_with_top_p(start):
  """Self-play with samples of top-p .9, scored without it, less the mean of the group."""
  log_pi = np.log(start)
  for _ in range(1000):
    pi = softmax(log_pi)
    q = np.exp(filter_row(log_pi, Filters(top_p=0.9)))
    value = (LED - 0.5) @ q - TAU * np.log(pi / LED_MU)
    force = q * (value - q @ value) / pi  # the natural gradient
    log_pi = log_pi + 0.3 * (force - force.mean())
  return softmax(log_pi)


def test_top_p_makes_the_rest_depend_on_the_start():
  nucleus = np.exp(filter_logits(jnp.log(LED_MU), Filters(top_p=0.9)))
  np.testing.assert_allclose(nucleus, np.array([10, 6, 3, 0]) / 19, rtol=0, atol=1e-12)
  nash = theory.regularised(TAU)(LED, LED_MU)
  expected = (0.1401511783, 0.0740564315, 0.0435694696, 0.7422229206)
  np.testing.assert_allclose(nash, expected, rtol=0, atol=6e-11)
  from_mu = run_with_top_p(LED_MU)
  expected = (0.5183597, 0.2219014, 0.2097617, 0.0499771)
  np.testing.assert_allclose(from_mu, expected, rtol=0, atol=6e-8)
  assert run_with_top_p(np.full(4, 0.25))[3] > 0.7 > 14 * from_mu[3]


# --- SPPO as it was released ---


def test_sppo_on_tempered_samples_rests_where_the_tempered_policy_is_the_lottery():
  lottery = np.array([4, 3, 4]) / 11
  pi = tempered(lottery, 1 / 0.7)
  np.testing.assert_allclose(pi, (0.3549115072, 0.2901769856, 0.3549115072), rtol=0, atol=6e-11)
  np.testing.assert_allclose(theory.gap(exact.CYCLE, pi), 0.0191946842, rtol=0, atol=6e-11)
  ascent = exact.make_ascent(catalogue.sppo_tempered(1.0, 2, 1, 0.5, 0.7))

  def moved(policy):
    return abs(ascent(dict.fromkeys(('policy', 'snapshot'), np.log(policy)), PAYOFF)).max()

  assert moved(pi) < 1e-12
  assert moved(lottery) > 1e-4


def test_the_target_of_sppo_on_tempered_samples():
  """log Z is not eta / 2, and top-p .9 may leave an action out of the fit."""
  q = tempered(MU, 0.7)
  np.testing.assert_allclose(q, (0.1541522159, 0.5707363041, 0.2751114801), rtol=0, atol=6e-11)
  targets = MU * np.exp(PAYOFF @ q)
  np.testing.assert_allclose(targets.sum(), 1.0091587475, rtol=0, atol=6e-11)
  nucleus = np.exp(filter_logits(jnp.log(exact.MU), Filters(temperature=0.7, top_p=0.9)))
  np.testing.assert_allclose(nucleus, (0.7291294502, 0.2708705498, 0), rtol=0, atol=6e-11)
