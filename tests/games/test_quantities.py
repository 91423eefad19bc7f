"""Divergences, gaps, spectrum, and the reward that RLHF would fit."""

import jax
import numpy as np
from scipy import special

from nlhf_jax.games import choice, game, matrices, rlhf, spectrum
from nlhf_jax.games.game import make_game
from tests.games.solving import divergence, gaps, logs, nash

# --- Divergences, gaps and values ---


def test_small_divergences_are_accurate(float64):
  policy = np.random.default_rng(0).dirichlet(np.ones(5))
  for size in (1e-3, 1e-6, 1e-9):
    change = size * np.array([1.0, -2.0, 0.5, 3.0, -1.0])
    other = special.log_softmax(np.log(policy) + change)
    variance = policy @ change**2 - (policy @ change) ** 2
    np.testing.assert_allclose(
      divergence(np.log(policy), other), variance / 2, rtol=3 * size + 1e-6
    )
  assert divergence(np.log(policy), np.log(policy)) == 0


def test_divergences_accept_zero_probabilities(float64):
  some, all_of_it = logs([0.5, 0.5, 0]), logs([0.25, 0.25, 0.5])
  np.testing.assert_allclose(divergence(some, all_of_it), np.log(2), rtol=1e-15)
  assert divergence(all_of_it, some) == np.inf
  assert divergence(some, some) == 0


def test_gaps_are_what_a_best_response_gains(float64):
  one = make_game(matrices.random(4, 1), np.random.default_rng(1).dirichlet(np.ones(4)), 0.2)
  policy, others = np.log(np.random.default_rng(2).dirichlet(np.ones(4), 2))[:, None]
  worth = jax.jit(jax.vmap(game.value, (None, 0, 0)))
  best = jax.vmap(game.log_best_response, (None, 0))(one, policy)
  np.testing.assert_allclose(worth(one, best, policy), gaps(one, policy), rtol=1e-12)
  np.testing.assert_allclose(worth(one, policy, others), -worth(one, others, policy), atol=1e-16)
  both = jax.vmap(game.duality_gap, (None, 0))(one, policy)
  np.testing.assert_allclose(both, 2 * gaps(one, policy), rtol=1e-15)


def test_best_response_takes_the_first_tie(float64):
  free = make_game(matrices.three_raters())
  for policy in ([1 / 3, 1 / 3, 1 / 3], [0.4, 0.3, 0.3], [0.1, 0.1, 0.8]):
    gain = np.round(matrices.three_raters() @ policy, 12)
    reply = jax.jit(game.log_best_response)(free, logs(policy))
    np.testing.assert_array_equal(np.exp(reply), np.eye(3)[gain.argmax()])


# --- Spectrum ---


def test_sigma_is_the_largest_response_eigenvalue(float64):
  one = make_game(matrices.random(6, 4), np.random.default_rng(4).dirichlet(np.ones(6)), 0.05)
  pi = np.exp(nash(one))
  jacobian = (np.diag(pi) - np.outer(pi, pi)) @ np.array(one.payoff) / 0.05
  found = jax.jit(spectrum.sigma)(one, np.log(pi))
  np.testing.assert_allclose(found, abs(np.linalg.eigvals(jacobian)).max(), rtol=1e-10)


def test_game_without_rotation_allows_every_step():
  steps = spectrum.stable_steps(0.0, 0.1)
  assert steps == (10.0, 10.0, np.inf, 1.0, 9.0)


# --- Reinforcement learning on a fitted reward ---


def test_reward_and_nash_pick_different_winners(float64):
  payoff = np.array([[0, 0.1, 0.1], [-0.1, 0, 0.45], [-0.1, -0.45, 0]])
  found = jax.jit(rlhf.compare_with_nash)(make_game(payoff, None, 0.01), np.full(3, 1 / 3))
  assert np.argmax(found.log_rlhf) == choice.borda_scores(payoff).argmax() == 1
  assert np.argmax(found.log_nash) == choice.condorcet_winner(payoff) == 0
  assert found.nash_beats_rlhf > 0.59
  assert found.rlhf_exploitability > 0.09 > 0.01 > found.nash_exploitability
