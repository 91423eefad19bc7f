"""The games by name."""

import inspect

import numpy as np
import pytest

from nlhf_jax.games import choice, matrices
from nlhf_jax.games.game import make_game
from tests.games.solving import gap

PREFERENCES = {
  'rock_paper_scissors': matrices.rock_paper_scissors(),
  'bradley_terry': matrices.bradley_terry([0.0, 3.0, -50.0]),
  'population': matrices.population([[1, 2, 3], [3, 2, 2]], [0.9, 0.1]),
  'random_population': matrices.random_population(6, 5, 1),
  'three_raters': matrices.three_raters(),
  'rater_types': matrices.rater_types(-0.2),
  'elo_example': matrices.elo_example(),
  'dice': matrices.dice(),
  'strict_cycle': matrices.strict_cycle(6),
  'random_disc': matrices.random_disc(50, 3),
  'blotto': matrices.blotto(4, 3),
  'morra': matrices.morra(3),
  'random': matrices.random(20, 3),
  'dial': matrices.dial(9, 0.3),
  'prompts': matrices.prompts(4, 5),
}
PAYOFFS = {
  'additive': matrices.additive([1.0, 5.0, -3.0]),
  'disc': matrices.disc([[1.0, 2.0], [0.0, -3.0], [4.0, 4.0]]),
  'with_equilibrium': matrices.with_equilibrium(matrices.random(4), [0.1, 0.2, 0.3, 0.4]),
}


def test_every_game_is_tested():
  no_payoffs = {'placements', 'with_regularised_equilibrium'}
  functions = {
    name
    for name, what in inspect.getmembers(matrices, inspect.isfunction)
    if what.__module__ == matrices.__name__
  }
  assert functions - no_payoffs == PREFERENCES.keys() | PAYOFFS.keys()


@pytest.mark.parametrize('payoff', [*PREFERENCES.values(), *PAYOFFS.values()])
def test_games_by_name_are_antisymmetric(payoff):
  assert payoff.dtype == float
  np.testing.assert_allclose(payoff, -payoff.swapaxes(-1, -2), rtol=0, atol=2e-16)


@pytest.mark.parametrize('payoff', PREFERENCES.values(), ids=PREFERENCES.keys())
def test_preferences_are_probabilities(payoff):
  assert abs(payoff).max() <= 0.5


@pytest.mark.parametrize('actions', [2, 3, 4, 5, 8])
def test_strict_cycle_has_a_uniform_equilibrium(actions, float64):
  payoff = matrices.strict_cycle(actions)
  assert gap(make_game(payoff), np.full(actions, -np.log(actions))) < 1e-15
  assert set(np.unique(payoff)) <= {-0.5, 0.0, 0.5}


def test_dial_interpolates_from_ranking_to_cycle():
  assert choice.condorcet_winner(matrices.dial(8, 0.0)) == 7
  np.testing.assert_array_equal(matrices.dial(8, 1.0), matrices.strict_cycle(8))
  shares = [choice.hodge(matrices.dial(8, cyclic)).share for cyclic in np.linspace(0, 1, 6)]
  assert (np.diff(shares) < 0).all()
  np.testing.assert_allclose([shares[0], shares[-1]], [1, 0], rtol=0, atol=1e-14)


def test_random_games_depend_on_the_seed_alone():
  for make in (matrices.random, matrices.random_disc, matrices.dial):
    np.testing.assert_array_equal(make(6, seed=1), make(6, seed=1))
    assert (make(6, seed=1) != make(6, seed=2)).any()
  assert matrices.prompts(3, 8).shape == (8, 3, 3)
  assert len(np.unique(matrices.prompts(3, 8)[:, 0, 1])) == 8


def test_placements_has_all_distributions():
  for soldiers, fields, count in ((5, 3, 21), (10, 3, 66), (5, 4, 56)):
    ways = matrices.placements(soldiers, fields)
    assert len({tuple(way) for way in ways}) == count
    assert (ways.sum(axis=1) == soldiers).all()


def test_morra_pays_a_single_right_guess():
  payoff = 12 * matrices.morra(3)
  actions = [(shown, guess) for shown in (1, 2, 3) for guess in (1, 2, 3)]
  for i, (shown, guess) in enumerate(actions):
    for j, (other, guessed) in enumerate(actions):
      won = (guess == other) - (guessed == shown)
      np.testing.assert_allclose(payoff[i, j], won * (shown + other), atol=1e-14)
