"""Social choice and maximal lotteries do not depend on the scale of payoffs."""

import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.games import choice, exact, matrices, solvers
from nlhf_jax.games.game import make_game
from nlhf_jax.games.solve import solve

SCALES = [1e-8, 1e-3, 1.0, 1e4, 1e16]


@pytest.mark.parametrize('scale', SCALES)
def test_maximal_lottery_ignores_the_scale(scale):
  payoff = scale * matrices.rock_paper_scissors(0.1, 0.15, 0.25)
  lottery = exact.maximal_lottery(payoff)
  np.testing.assert_allclose(lottery, [0.2, 0.3, 0.5], atol=1e-9)
  assert exact.is_unique_equilibrium(payoff, lottery)


@pytest.mark.parametrize('scale', SCALES)
def test_social_choice_ignores_the_scale(scale):
  payoff = matrices.random(31, 2)
  assert choice.three_cycles(scale * payoff) == choice.three_cycles(payoff)
  assert choice.condorcet_winner(scale * matrices.bradley_terry([0, 2, 1])) == 1
  turns = choice.disc_games(scale * payoff)
  total = sum(
    turn.strength * (np.outer(turn.u, turn.v) - np.outer(turn.v, turn.u)) for turn in turns
  )
  np.testing.assert_allclose(total, scale * payoff, atol=1e-12 * scale)
  assert len(choice.disc_games(scale * matrices.random_disc(101))) == 1


def test_bradley_terry_fits_unless_a_group_always_wins():
  every = lambda count: np.ones((count, count), bool)
  assert choice.has_bradley_terry_fit(matrices.random(6), every(6))
  assert choice.has_bradley_terry_fit(matrices.strict_cycle(3), every(3))  # each loses to another
  assert not choice.has_bradley_terry_fit(np.array([[0, 0.5], [-0.5, 0]]), every(2))
  assert not choice.has_bradley_terry_fit(
    np.array([[0, 0.7], [-0.7, 0]]), every(2)
  )  # no probability
  assert choice.has_bradley_terry_fit(np.zeros((1, 1)), every(1))


def test_maximal_lottery_refuses_a_batch():
  with pytest.raises(UserError, match='one game at a time'):
    exact.maximal_lottery(matrices.prompts())


def test_decreasing_updates_are_refused():
  game = make_game(matrices.three_raters(), None, 0.1)
  with pytest.raises(UserError, match='must be increasing'):
    solve(solvers.mwu(0.1), game, np.array([3, 2]))


def test_anderson_needs_positive_tau():
  with pytest.raises(UserError, match='anderson needs a tau above 0'):
    solve(exact.anderson(), make_game(matrices.three_raters()), np.array([3]))
