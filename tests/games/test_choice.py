"""Social choice: winners, ratings and cycles, disc games, uniqueness of equilibria."""

import numpy as np
import pytest

from nlhf_jax.games import choice, exact, matrices

RPS = matrices.rock_paper_scissors()
CONDORCET = np.array([[0, 0.1, 0.1], [-0.1, 0, 0.45], [-0.1, -0.45, 0]])


def test_winners_of_a_game_with_a_favourite():
  assert choice.condorcet_winner(CONDORCET) == 0
  np.testing.assert_allclose(choice.borda_scores(CONDORCET) - 0.5, [0.2 / 3, 0.35 / 3, -0.55 / 3])
  np.testing.assert_array_equal(choice.copeland_scores(CONDORCET), [2, 0, -2])
  np.testing.assert_array_equal(choice.worst_defeats(CONDORCET), [0, 0.1, 0.45])
  assert choice.three_cycles(CONDORCET) == 0


def test_winners_of_a_cycle():
  assert choice.condorcet_winner(RPS) is None
  np.testing.assert_array_equal(choice.borda_scores(RPS), [0.5, 0.5, 0.5])
  np.testing.assert_array_equal(choice.copeland_scores(RPS), [0, 0, 0])
  assert choice.three_cycles(RPS) == 1


def test_a_tie_wins_nothing():
  assert choice.condorcet_winner(np.zeros((2, 2))) is None
  np.testing.assert_array_equal(choice.copeland_scores(np.zeros((2, 2))), [0, 0])


@pytest.mark.parametrize('actions', [3, 5, 7, 9])
def test_regular_tournaments_have_the_most_cycles(actions):
  cycles = choice.three_cycles(matrices.strict_cycle(actions))
  assert cycles == actions * (actions**2 - 1) // 24


@pytest.mark.parametrize(
  ('payoff', 'share'),
  [
    (matrices.additive([0.3, -1.0, 2.0]), 1.0),
    (matrices.strict_cycle(5), 0.0),
    (matrices.random(6, 2), None),
    (matrices.with_equilibrium(matrices.random(6, 2), np.full(6, 1 / 6)), 0.0),
    (np.zeros((3, 3)), 1.0),
    (np.zeros((1, 1)), 1.0),
  ],
)
def test_a_payoff_is_ratings_and_cycles(payoff, share):
  ratings, cyclic, found = choice.hodge(payoff)
  transitive = matrices.additive(ratings)
  np.testing.assert_allclose(transitive + cyclic, payoff, rtol=0, atol=1e-15)
  np.testing.assert_allclose(cyclic.sum(axis=1), 0, atol=1e-14)
  np.testing.assert_allclose(ratings.sum(), 0, atol=1e-14)
  np.testing.assert_allclose((transitive * cyclic).sum(), 0, atol=1e-14)
  squares = (payoff**2).sum() * np.array([found, 1 - found])
  np.testing.assert_allclose(squares, [(transitive**2).sum(), (cyclic**2).sum()], atol=1e-14)
  assert share is None or abs(found - share) < 1e-14


@pytest.mark.parametrize(
  ('payoff', 'planes'),
  [
    (matrices.random(7, 3), 3),
    (matrices.random(8, 3), 4),
    (matrices.random_disc(9, 1), 1),
    (matrices.additive([1.0, 2.0, 4.0, 8.0]), 1),
    (matrices.strict_cycle(5), 2),
    (np.zeros((4, 4)), 0),
    (np.zeros((1, 1)), 0),
  ],
)
def test_payoff_is_a_sum_of_disc_games(payoff, planes):
  turns = choice.disc_games(payoff)
  assert len(turns) == planes
  parts = [s * (np.outer(u, v) - np.outer(v, u)) for s, u, v in turns]
  np.testing.assert_allclose(sum(parts, np.zeros_like(payoff)), payoff, rtol=0, atol=1e-13)
  basis = np.array([vector for turn in turns for vector in turn[1:]]).reshape(-1, len(payoff))
  np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), rtol=0, atol=1e-13)
  strengths = [turn.strength for turn in turns]
  assert strengths == sorted(strengths, reverse=True)
  values = np.linalg.svd(payoff, compute_uv=False)[: 2 * planes : 2]
  np.testing.assert_allclose(strengths, values, rtol=1e-12)


@pytest.mark.parametrize(
  ('payoff', 'only'),
  [
    (matrices.rock_paper_scissors(0.2, 0.3, 0.5), True),
    (CONDORCET, True),
    (matrices.random(7, 1), True),
    (matrices.morra(2), False),
    (matrices.rater_types(1 / 3), False),
    (np.zeros((2, 2)), False),
  ],
)
def test_unregularised_equilibrium_may_not_be_unique(payoff, only):
  assert exact.is_unique_equilibrium(payoff, exact.maximal_lottery(payoff)) is only
