"""Samples at a temperature that the loss does not know: each algorithm's rest is another one.

On the cycle of `test_fixed_points` at tau = .1; numbers were computed apart to ten digits.
"""

import numpy as np
import pytest
from scipy.special import softmax

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.algorithm import mixture
from tests.laws import exact, theory
from tests.laws.exact import natural
from tests.laws.test_groups_of_samples import MU, PAYOFF, TAU

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


@pytest.mark.parametrize(
  ('temperature', 'scored', 'with_baseline'),
  [
    (
      0.7,
      (0.2929193666, 0.2964940663, 0.4105865671),
      (0.2994457246, 0.2859958401, 0.4145584353),
    ),
    (
      1.5,
      (0.2446053897, 0.2510466452, 0.5043479651),
      (0.2364543188, 0.2809904002, 0.4825552810),
    ),
  ],
)
def test_rests_of_scored_samples_and_of_baselines(temperature, scored, with_baseline):
  """Scored at T the tempered policy is the equilibrium; a baseline makes pi a reply to it."""
  nash = theory.regularised(TAU)(exact.CYCLE, MU)
  np.testing.assert_allclose(tempered(nash, 1 / temperature), scored, rtol=0, atol=6e-11)
  log_pi = np.log(MU)
  for _ in range(2000):
    reply = np.log(MU) + PAYOFF @ softmax(log_pi / temperature) / TAU
    log_pi = 0.9 * log_pi + 0.1 * (reply - reply.mean())
  np.testing.assert_allclose(softmax(log_pi), with_baseline, rtol=0, atol=1e-9)


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
