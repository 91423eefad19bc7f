"""Convergence of solvers: bounds of theorems at every step, and measured rates."""

import jax
import numpy as np
import pytest

from nlhf_jax.games import exact, matrices, solvers, spectrum
from nlhf_jax.games.game import make_game
from tests.games.solving import (
  MU,
  assert_printed,
  divergences,
  gaps,
  logs,
  nash,
  nashes,
  path,
  paths,
)

pytestmark = pytest.mark.usefixtures('float64')

ACTIONS = 4
SIZE = np.float64(0.5)  # the largest payoff, so that all games have the same steps
ROUNDING = 1e-26
WEIGHTED = matrices.rock_paper_scissors(0.2, 0.3, 0.5)

closeness = jax.jit(jax.vmap(divergences))


def batch(seed, count, low=0.02, high=1.0):
  """Random games, each at a tau of its own between `low` and `high`, and starts for them."""
  random = np.random.default_rng(seed)
  mu, start = random.dirichlet(np.ones(ACTIONS), (2, count))
  tau = np.exp(random.uniform(np.log(low), np.log(high), count))
  games = make_game(matrices.random(ACTIONS, seed, (count,)), mu)
  return games._replace(tau=tau), np.log(start), tau


def kls(make, games, starts, times, *numbers):
  """KL(equilibrium, policy) of every game and time, [games, times]."""
  found = paths(make, games, times, starts, numbers)
  return np.array(closeness(nashes(games), found.last))


# --- Theorem 1 of Nash-MD ---


def theorem_holds(kl, step, tau):
  """(6) at every step, and with eta^2 / 8 for its 2 eta^2, which Hoeffding's lemma gives."""
  shrunk = (1 - step * tau) * kl[:, :-1]
  for slack in (2 * step**2, step**2 / 8):
    assert (kl[:, 1:] <= (shrunk + slack) * (1 + 1e-12)).all()


def test_theorem_1_holds_at_every_constant_step():
  games, starts, tau = batch(1, 1000)
  step = np.random.default_rng(1).uniform(0, 1, 1000) / tau
  kl = kls(solvers.nash_md, games, starts, np.arange(41), step)
  theorem_holds(kl, step[:, None], tau[:, None])


def test_theorem_1_holds_at_every_decreasing_step():
  games, starts, tau = batch(2, 1000)
  times = np.arange(101)
  kl = kls(solvers.nash_md_decreasing, games, starts, times)
  theorem_holds(kl, 2 / (tau[:, None] * (times[:-1] + 2)), tau[:, None])
  bound = 8 / (tau[:, None] ** 2 * (times[1:] + 1))
  assert (kl[:, 1:] <= bound).all()
  assert (kl[:, 1:] <= bound / 16).all()


def test_first_versions_constant_step_keeps_its_bound():
  """eta = log T / (tau T), under which KL_T <= (KL_0 + 2 log T / tau^2) / T."""
  updates = 100
  games, starts, tau = batch(3, 200)
  step = np.log(updates) / (tau * updates)
  kl = kls(solvers.nash_md, games, starts, np.array([0, updates]), step)
  assert (kl[:, 1] <= (kl[:, 0] + 2 * np.log(updates) / tau**2) / updates).all()


def slopes(kl, times):
  """The exponents of the powers of time that fit a path each, [games]."""
  return np.polyfit(np.log(times), np.log(kl).T, 1)[0]


def test_decreasing_steps_converge_quadratically_for_three_raters():
  times = np.geomspace(100, 10_000, 9).astype(int)
  game = make_game(matrices.three_raters(), MU, 0.1)
  last = path(solvers.nash_md_decreasing, game, times).last
  (slope,) = slopes(np.array(divergences(nash(game), last))[None], times)
  assert -2.01 < slope < -1.98


def test_decreasing_steps_converge_in_any_game():
  times = np.geomspace(1000, 10_000, 5).astype(int)
  games, starts, _ = batch(4, 100, low=0.05)
  slope = slopes(kls(solvers.nash_md_decreasing, games, starts, times), times)
  assert slope.max() < -1


# --- Linear convergence ---


def assert_linear(kl, factor):
  """KL_t <= KL_0 factor^t, down to rounding; and a straight line fits the logarithm."""
  times = np.arange(kl.shape[1])
  assert (kl <= kl[:, :1] * factor[:, None] ** times + ROUNDING).all()
  for one in kl:
    kept = one > 1e3 * ROUNDING
    fit = np.polyfit(times[kept], np.log(one[kept]), 1)
    rest = np.log(one[kept]) - np.polyval(fit, times[kept])
    assert fit[0] < 0
    assert 1 - rest.var() / np.log(one[kept]).var() > 0.97


def test_extragradient_keeps_the_rate_of_its_theorem():
  games, starts, tau = batch(5, 200, low=0.05)
  step = 1 / (tau + 2 * SIZE)
  kl = kls(solvers.extragradient, games, starts, np.arange(201), step)
  assert_linear(kl, 1 - step * tau)


def test_optimistic_steps_keep_the_rate_of_their_theorem():
  games, starts, tau = batch(6, 200, low=0.05)
  step = np.minimum(1 / (2 * tau + 2 * SIZE), 1 / (4 * SIZE))
  kl = kls(solvers.optimistic, games, starts, np.arange(201), step)
  assert_linear(kl, 1 - step * tau)


def test_mmd_contracts_at_every_step():
  games, starts, tau = batch(7, 200, low=0.1)
  step = tau / SIZE**2
  kl = kls(solvers.mmd, games, starts, np.arange(201), step)
  assert (kl[:, 1:] * (1 + step * tau)[:, None] <= kl[:, :-1] + ROUNDING).all()
  assert_linear(kl, 1 / (1 + step * tau))


@pytest.mark.parametrize('eta', [0.5, 5.0, 50.0])
def test_proximal_points_contract_at_every_step(eta):
  games, starts, tau = batch(8, 50, low=0.1)
  kl = kls(exact.proximal_point, games, starts, np.arange(31), np.full(50, eta))
  assert (kl[:, 1:] * (1 + eta * tau)[:, None] <= kl[:, :-1] + ROUNDING).all()


# --- Local rates, by the spectrum ---


def test_damped_best_responses_have_the_spectral_rate():
  """With three actions the rotation is in one plane, and sigma alone determines its speed."""
  for seed in range(5):
    game = make_game(matrices.rock_paper_scissors(*np.random.default_rng(seed).random(3)), MU, 0.1)
    log_nash = nash(game)
    sigma = float(spectrum.sigma(game, log_nash))
    damping = spectrum.stable_steps(sigma, 0.1).best_damping
    np.testing.assert_allclose(damping, 1 / (1 + sigma**2), rtol=1e-15)
    near = log_nash + 1e-5 * np.array([1, -1, 0])
    last = path(solvers.best_response, game, np.arange(41), near, (damping,)).last
    slope = np.polyfit(np.arange(41), np.log(divergences(log_nash, last)), 1)[0]
    np.testing.assert_allclose(slope, np.log(sigma**2 / (1 + sigma**2)), rtol=0.05)


LIMITS = [(solvers.self_play, 'self_play'), (solvers.nash_md, 'nash_md'), (solvers.mmd, 'mmd')]


@pytest.mark.parametrize(('make', 'name'), LIMITS)
@pytest.mark.parametrize('tau', [0.05, 0.02])
def test_steps_are_stable_only_below_the_limit(make, name, tau):
  game = make_game(matrices.strict_cycle(3), None, tau)
  log_nash = nash(game)
  steps = spectrum.stable_steps(float(spectrum.sigma(game, log_nash)), tau)
  limit = getattr(steps, name)
  assert limit < 1 / tau
  near = log_nash + 1e-3 * np.array([1, -1, 0])
  for share, stable in ((0.95, True), (1.05, False)):
    last = path(make, game, np.array([0, 5000]), near, (share * limit,)).last
    first, then = divergences(log_nash, last)
    assert then < first / 10 if stable else then > 10 * first


def test_the_step_for_extragradient_is_fast():
  game = make_game(matrices.random(ACTIONS, 9), None, 0.02)
  log_nash = nash(game)
  sigma = float(spectrum.sigma(game, log_nash))
  step = spectrum.stable_steps(sigma, 0.02).extragradient
  assert step > 1 / (0.02 + 2 * SIZE)
  last = path(solvers.extragradient, game, np.array([100]), None, (step,)).last
  assert gaps(game, last)[0] < 1e-12


# --- Unregularised: averages, and the last iterate of optimistic steps ---

TIMES = np.array([100, 1000, 10_000, 100_000])


def test_fictitious_play_counts_without_rounding():
  """Compared with integer counts, where ties go to the first action.

  Printed as 1.9e-2, 6.1e-3, 1.9e-3 and 6.0e-4, which is what counts in floating point give, where
  the rounding of A n breaks the ties.
  """
  tenths, counts, found = np.round(10 * WEIGHTED).astype(int), np.array([1, 0, 0]), {}
  for time in range(1, TIMES[-1] + 1):
    gain = tenths @ counts
    found[time] = gain.max() / (10 * time)
    counts[gain.argmax()] += 1
  game = make_game(WEIGHTED)
  last = path(solvers.fictitious_play, game, TIMES - 1, logs([1, 0, 0])).last
  expected = [found[time] for time in TIMES]
  np.testing.assert_allclose(gaps(game, last), expected, rtol=1e-10)
  assert_printed(expected, '2.2e-2 6.7e-3 2.1e-3 6.7e-4')


def test_regret_matching_plus_with_linear_averaging():
  game = make_game(WEIGHTED)
  average = path(solvers.regret_matching_plus, game, TIMES - 1, None, (), 1.0).average
  assert_printed(gaps(game, average), '1.9e-2 4.3e-3 1.2e-3 2.3e-4')


def test_last_iterate_of_optimistic_steps_converges():
  game = make_game(WEIGHTED)
  times = np.array([100, 1000, 2000, 3000, 4000, 10_000])
  found = gaps(game, path(solvers.optimistic_mwu, game, times, None, (0.5,)).last)
  assert (np.diff(found[:-1]) < 0).all()
  assert found[-1] < 1e-15


@pytest.mark.parametrize('payoff', [WEIGHTED, matrices.random(25, 3)], ids=['three', 'many'])
@pytest.mark.parametrize(
  ('make', 'power'),
  [
    (solvers.regret_matching, 0.0),
    (solvers.regret_matching_plus, 0.0),
    (solvers.regret_matching_plus, 1.0),
  ],
)
def test_averages_of_regret_matching_keep_their_bound(make, power, payoff):
  game, times = make_game(payoff), TIMES[:-1]
  found = gaps(game, path(make, game, times, None, (), power).average)
  assert (found <= (1 + power) * np.sqrt(len(payoff) / (times + 1))).all()
  assert (found[1:] < 0.7 * found[:-1]).all()


@pytest.mark.parametrize('eta', [1.0, 0.1, 0.01])
def test_averages_of_multiplicative_weights_keep_their_bound(eta):
  for payoff in (WEIGHTED, matrices.random(25, 4)):
    game, times = make_game(payoff), TIMES[:-1]
    found = gaps(game, path(solvers.mwu, game, times, None, (eta,)).average)
    assert (found <= np.log(len(payoff)) / (eta * (times + 1)) + eta / 8).all()


def test_fictitious_play_comes_closer_in_a_large_game():
  game = make_game(matrices.random(25, 5))
  found = gaps(game, path(solvers.fictitious_play, game, TIMES[:-1]).last)
  assert (found[1:] < 0.6 * found[:-1]).all()
