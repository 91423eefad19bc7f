"""Each algorithm of the catalogue, run exactly, converges to its theoretical fixed point.

A new algorithm needs an entry in `LAWS`, or in `test_successors.RUNS` if only its average
converges. A test that no algorithm is left out is in `test_offline_algorithms`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import optax
import pytest

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.algorithm import Algorithm
from tests.laws import exact, theory
from tests.laws.exact import natural

pytestmark = pytest.mark.usefixtures('float64')

NEVER = 10**9
OF_PAIRS = np.outer([0.5, 0.3, 0.2], [0.5, 0.3, 0.2])
UNEVEN = np.array([[0.1, 0.2, 0.05], [0.05, 0.1, 0.1], [0.15, 0.2, 0.05]])  # not a product
ALIKE = np.full((3, 3), 1 / 9)
GAMES = {'cycle': (exact.CYCLE, exact.CYCLE_MU), 'random': (exact.random_game(38, 3), exact.MU)}


class Law(NamedTuple):
  """An algorithm, its fixed point, the optimizer, its steps, and the distribution of the data."""

  algorithm: Algorithm
  theory: Callable
  optimizer: optax.GradientTransformation
  steps: int = 2000
  shares: np.ndarray | None = None


nash = theory.regularised(0.1)
LAWS = {
  # Policy gradients.
  'self_play': Law(catalogue.self_play(0.1), nash, natural(0.3)),
  'nash_md_pg': Law(catalogue.nash_md_pg(0.25, 0.1), theory.biased(0.25, 0.1), natural(0.3)),
  'rlhf_pg': Law(catalogue.rlhf_pg(0.1), nash, natural(0.3)),
  'best_response': Law(catalogue.best_response(0.1), theory.reply(0.1), natural(0.3)),
  'nash_ema_pg': Law(catalogue.nash_ema_pg(0.3, 0.1), nash, natural(0.3)),
  'nash_prox': Law(catalogue.nash_prox(0.1, 1.0, 0.3), nash, natural(0.3)),
  'spo, regularised': Law(catalogue.spo(0.1, 3, 2), nash, natural(0.3)),
  'mpo, never reset': Law(catalogue.mpo(0.1, 1.0, 2, NEVER), nash, natural(1 / 1.1)),
  'mpo': Law(catalogue.mpo(0.1, 0.3, 1, 50), theory.lottery, natural(1 / (0.1 + 1 / 0.3)), 4000),
  # In rounds.
  'inpo': Law(catalogue.inpo(0.1, 2.0, 3), nash, natural(0.25)),
  'comal, never reset': Law(catalogue.comal(0.1, 2.0, 3, NEVER), nash, natural(0.25)),
  'comal': Law(catalogue.comal(0.1, 2.0, 1, 200), theory.lottery, natural(0.25), 20000),
  'mnpo': Law(catalogue.mnpo(1 / 3, 0.3, 2, 2), nash, natural(0.25)),
  'onpo': Law(catalogue.onpo(1.0, 1), theory.lottery, natural(0.25), 40000),
  'spin': Law(
    catalogue.spin(1.0, 1), theory.demonstrations, natural(0.5), shares=np.array([0.7, 0.1, 0.2])
  ),
  'rspo, reverse': Law(
    catalogue.rspo(2.0, 2, 1, 0.0, 0.1), theory.regularised(0.1), natural(0.1), 4000
  ),
  'rspo': Law(catalogue.rspo(2.0, 2, 1, 0.2, 0.1), theory.rspo(2.0, 0.2, 0.1), natural(0.1), 4000),
  'rspo, forward': Law(
    catalogue.rspo(2.0, 2, 1, 0.5, 0.0), theory.rspo(2.0, 0.5, 0.0), natural(0.1), 4000
  ),
  # Online.
  'online_ipo': Law(catalogue.online_ipo(0.1), nash, natural(0.02)),
  'ipo_md': Law(catalogue.ipo_md(0.25, 0.1), theory.biased(0.25, 0.1), natural(0.02)),
  'egpo': Law(catalogue.egpo(0.1, 1e9), nash, optax.sgd(0.3 * 0.1 * 3 / 4), 4000),
  'oelhf': Law(catalogue.oelhf(0.1, 2), nash, natural(0.02)),
  'online_dpo': Law(catalogue.online_dpo(0.5), theory.online_dpo(0.5), natural(0.5)),
  'xpo, alpha 0': Law(catalogue.xpo(0.0, 0.5), theory.xpo(0.0, 0.5), natural(0.5)),
  'xpo': Law(catalogue.xpo(0.05, 0.5), theory.xpo(0.05, 0.5), natural(0.5)),
  # From data.
  'sft': Law(
    catalogue.sft(), theory.demonstrations, natural(0.3), shares=np.array([0.7, 0.1, 0.2])
  ),
  'reward_model': Law(
    catalogue.reward_model(),
    theory.of_data(theory.sigmoids(1.0), anchored=False),
    natural(0.5),
    shares=UNEVEN,
  ),
  'dpo': Law(
    catalogue.dpo(0.5), theory.of_data(theory.sigmoids(0.5)), natural(0.5), 4000, shares=UNEVEN
  ),
  'cdpo': Law(
    catalogue.cdpo(0.5, 0.1),
    theory.of_data(theory.sigmoids(0.5, lambda p: 0.9 * p + 0.1 * (1 - p))),
    natural(0.5),
    4000,
    shares=UNEVEN,
  ),
  'robust_dpo': Law(
    catalogue.robust_dpo(0.5, 0.05),
    theory.of_data(theory.sigmoids(0.5, lambda p: (0.95 * p - 0.05 * (1 - p)) / 0.9)),
    natural(0.5),
    4000,
    shares=UNEVEN,
  ),
  'ipo': Law(catalogue.ipo(0.3), theory.reply(0.3, True), natural(0.05), shares=OF_PAIRS),
  'ipo_per_token': Law(
    catalogue.ipo_per_token(0.3), theory.reply(0.3, True), natural(0.05), shares=OF_PAIRS
  ),
  'slic': Law(catalogue.slic(4.0, 6.0), theory.slic(4.0, 6.0), natural(0.02), shares=UNEVEN),
  'kto': Law(catalogue.kto(0.5, 2.0, 1.0), theory.kto(0.5, 2.0, 1.0), natural(0.5), shares=ALIKE),
  'rso, all kept': Law(
    catalogue.rso(0.5, 0.7, 2, 2), theory.of_samples(theory.sigmoids(0.7)), natural(0.5)
  ),
  'simpo': Law(catalogue.simpo(1.0, 0.5), theory.simpo(1.0, 0.5), natural(0.5), shares=UNEVEN),
}


@functools.cache
def fixed_point_finder(name):
  """Compiled once, for all the games of three actions."""
  law = LAWS[name]
  find_fixed_point = exact.make_find_fixed_point(law.algorithm, law.optimizer, law.steps)
  return lambda preference, mu: find_fixed_point(preference, mu, law.shares)


@pytest.mark.parametrize('name', LAWS)
def test_algorithms_converge_to_their_fixed_points(name):
  law = LAWS[name]
  for preference, mu in GAMES.values():
    pi = np.exp(fixed_point_finder(name)(preference, mu)['policy'])
    truth = law.theory(preference, mu, law.shares)
    np.testing.assert_allclose(pi, truth, rtol=0, atol=1e-9)


@pytest.mark.parametrize('name', ['nash_prox', 'inpo', 'mnpo', 'online_ipo', 'egpo', 'oelhf'])
def test_regularised_nash_algorithms_with_four_actions(name):
  mu = np.array([0.1, 0.2, 0.3, 0.4])
  for seed in range(2):
    preference = exact.random_game(seed, 4)
    pi = np.exp(fixed_point_finder(name)(preference, mu)['policy'])
    np.testing.assert_allclose(pi, nash(preference, mu), rtol=0, atol=1e-9)
