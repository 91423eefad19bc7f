"""All solvers: batches of games, starts and numbers; one action; policies with zeros."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.games import choice, exact, matrices, rlhf, solvers, spectrum
from nlhf_jax.games.game import make_game
from nlhf_jax.games.solve import log_spaced_updates, solve
from tests.games.solving import at, gap, logs, path, paths

# Arguments of every solver for three games; then which of its policies comes how close to which
# equilibrium in 3000 updates: its last policy or its average, regularised or not.
SIZES = (1.0, 0.9, 0.8)
INVERSES = (1.0, 1.2, 1.3)
TABLE = {
  'nash_md': ((SIZES,), 'last', 'regularised', 2e-2),
  'nash_md_decreasing': ((), 'last', 'regularised', 1e-6),
  'self_play': ((SIZES,), 'last', 'regularised', 1e-25),
  'mwu': (((0.1, 0.2, 0.3),), 'average', 'free', 2e-2),
  'sppo': (((0.1, 0.2, 0.3),), 'average', 'free', 2e-2),
  'inpo': ((INVERSES,), 'last', 'regularised', 1e-25),
  'nash_ema': ((SIZES, (0.5, 0.6, 0.7)), 'last', 'regularised', 1e-25),
  'mmd': ((SIZES,), 'last', 'regularised', 1e-25),
  'mpo': ((SIZES, (30, 40, 50)), 'last', 'free', 1e-7),
  'mmd_ema': ((SIZES, (0.05, 0.04, 0.03)), 'last', 'free', 1e-7),
  'comal': ((INVERSES, (30, 40, 50)), 'last', 'free', 1e-7),
  'optimistic': ((SIZES,), 'last', 'regularised', 1e-25),
  'optimistic_mwu': ((SIZES,), 'last', 'free', 1e-9),
  'extragradient': ((SIZES,), 'last', 'regularised', 1e-25),
  'mirror_prox': ((SIZES,), 'last', 'regularised', 1e-25),
  'best_response': (((0.1, 0.15, 0.2),), 'last', 'regularised', 1e-25),
  'smooth_fictitious_play': ((), 'last', 'regularised', 1e-5),
  'fictitious_play': ((), 'last', 'free', 1e-2),
  'regret_matching': ((), 'average', 'free', 1e-2),
  'regret_matching_plus': ((), 'average', 'free', 1e-2),
  'newton': ((), 'last', 'regularised', 1e-25),
  'anderson': ((), 'last', 'regularised', 1e-25),
  'proximal_point': ((SIZES,), 'last', 'regularised', 1e-25),
}
NEED_SUPPORT = ('newton', 'anderson', 'proximal_point')


def maker(name):
  return getattr(solvers, name, None) or getattr(exact, name)


def numbers(name, chosen):
  return tuple(np.asarray(column)[chosen] for column in TABLE[name][0])


def stepped(name, chosen, game, start, updates):
  """The policy after some updates, made one by one."""
  solver = maker(name)(*(number.item() for number in numbers(name, chosen)))
  state = solver.init(game, jnp.asarray(start))
  for _ in range(updates):
    state = solver.update(game, state)
  assert state.count == updates
  return np.array(state.log_pi)


# --- Solvers ---


def test_every_solver_is_tested():
  combinators = {'memoryless', 'unregularised', 'moving_reference', 'Solver'}
  found = {
    name
    for module in (solvers, exact)
    for name, what in inspect.getmembers(module, inspect.isfunction)
    if what.__annotations__.get('return') is solvers.Solver and name[0] != '_'
  }
  assert found - combinators == TABLE.keys()


@pytest.fixture
def three(float64):
  """Three games with different tau, and starts for them."""
  payoffs = np.stack([matrices.rock_paper_scissors(*row) for row in GENERIC])
  mu, starts = np.random.default_rng(1).dirichlet(np.full(3, 5.0), (2, 3))
  return at(make_game(payoffs, mu), np.array([0.1, 0.15, 0.2])), logs(starts)


GENERIC = np.array([[0.2, 0.3, 0.5], [0.5, 0.3, 0.4], [0.3, 0.3, 0.2]])


@pytest.mark.parametrize('name', TABLE)
def test_every_solver_converges_under_vmap(name, three):
  games, starts = three
  _, what, target, tolerance = TABLE[name]
  found = paths(maker(name), games, np.array([3, 3000]), starts, numbers(name, slice(None)))
  for i in range(3):
    one = jax.tree.map(lambda leaf, i=i: leaf[i], games)
    alone = stepped(name, i, one, starts[i], updates=3)
    # All actions but the best one are at -inf.
    np.testing.assert_allclose(np.exp(found.last[i, 0]), np.exp(alone), rtol=0, atol=1e-12)
    judged = one if target == 'regularised' else at(one, 0)
    assert gap(judged, getattr(found, what)[i, 1]) < tolerance


@pytest.mark.parametrize('name', TABLE)
def test_single_action_is_always_played(name, float64):
  alone = make_game([[0.0]], [1.0], 0.2)
  assert stepped(name, 0, alone, [0.0], updates=12) == [0.0]


def test_game_of_one_action_is_solved(float64):
  nothing, one = np.zeros((1, 1)), make_game([[0.0]], [1.0], 0.2)
  assert exact.maximal_lottery(nothing) == [1.0]
  found = exact.equilibrium(one)
  assert found == (0.0, 0.0, 0)
  assert gap(one, found.log_pi) == gap(at(one, 0), found.log_pi) == 0
  assert spectrum.sigma(one, found.log_pi) == 0
  assert choice.condorcet_winner(nothing) == 0
  assert choice.borda_scores(nothing) == [0.5]
  assert choice.three_cycles(nothing) == choice.worst_defeats(nothing) == 0
  compared = rlhf.compare_with_nash(one, jnp.ones(1))
  assert compared == (0.0, 0.0, 0.0, 0.5, 0.0, 0.0)


@pytest.mark.parametrize('name', TABLE)
@pytest.mark.parametrize('size', [0.0, 1e6])
def test_solvers_work_for_payoffs_of_any_size(name, size, float64):
  game = make_game(size * matrices.rock_paper_scissors(*GENERIC[0]), None, 0.2)
  policy = np.exp(stepped(name, 0, game, logs([0.5, 0.3, 0.2]), updates=4))
  np.testing.assert_allclose(policy.sum(), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize('name', sorted(TABLE.keys() - {*NEED_SUPPORT}))
def test_policies_may_have_zeros(name, float64):
  game = make_game(matrices.rock_paper_scissors(*GENERIC[0]), [0.5, 0.3, 0.2], 0.2)
  policy = np.exp(stepped(name, 0, game, logs([0, 0.4, 0.6]), updates=3))
  np.testing.assert_allclose(policy.sum(), 1, rtol=0, atol=1e-12)
  # Steps from the last policy keep zeros; best responses, and a first step with full pull, do not.
  forget = ('nash_md_decreasing', 'best_response', 'smooth_fictitious_play')
  if name in forget:
    assert policy.min() > 0
  elif 'regret' not in name and name != 'fictitious_play':
    assert policy[0] == 0


def test_full_pull_forgets_zeros(float64):
  """1 / tau times tau is not 1 for every tau; the pull is still whole."""
  payoff, start = matrices.rock_paper_scissors(), jnp.asarray(logs([1, 0, 0]))
  taus = np.arange(1, 100) / 7
  assert not (taus * (1 / taus) == 1).all()
  for tau in taus:
    state = solvers.nash_md_decreasing().init(make_game(payoff, None, tau), start)
    state = solvers.nash_md_decreasing().update(make_game(payoff, None, tau), state)
    assert np.isfinite(state.log_pi).all()


def test_mwu_is_self_play_at_zero_tau(float64):
  game = make_game(matrices.random(4), None, 0.3)
  free = path(solvers.self_play, at(game, 0), np.array([20]), None, (0.5,)).last
  np.testing.assert_array_equal(path(solvers.mwu, game, np.array([20]), None, (0.5,)).last, free)


def test_steps_may_depend_on_count_and_tau(float64):
  def growing(count, tau):
    return (count + 1) / (1 + tau)

  game = make_game(matrices.random(4), None, 0.3)
  for make in (solvers.self_play, solvers.mmd, solvers.inpo, solvers.nash_ema):
    args = (growing, 0.5) if make is solvers.nash_ema else (growing,)
    state = make(*args).init(game, game.log_reference)
    assert np.isfinite(make(*args).update(game, state).log_pi).all()


def test_solvers_run_in_single_precision():
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    game = make_game(matrices.random(5), None, 0.1)
    assert game.payoff.dtype == game.tau.dtype == np.float32
    found = exact.equilibrium(game, 1e-9)
    last = path(solvers.extragradient, game, np.array([400]), None, (0.9,)).last[0]
    played = path(solvers.fictitious_play, game, np.array([400])).last[0]
  assert found.log_pi.dtype == last.dtype == np.float32
  assert 0 <= found.exploitability < 1e-9
  assert gap(game, last) < 1e-9
  np.testing.assert_allclose(np.exp(last), np.exp(found.log_pi), rtol=0, atol=1e-5)
  assert gap(at(game, np.float32(0)), played) < 0.02


# --- Runs ---


def test_runs_keep_policies_and_weighted_averages(float64):
  game, times = make_game(matrices.random(3), [0.5, 0.3, 0.2], 0.1), np.array([0, 1, 4, 9])
  start = logs([0.1, 0.2, 0.7])
  seen = np.exp([stepped('self_play', 0, game, start, updates) for updates in range(10)])
  for power in (0.0, 1.0):
    found = path(solvers.self_play, game, times, start, (1.0,), power)
    weights = (np.arange(10) + 1.0) ** power
    means = (weights[:, None] * seen).cumsum(axis=0) / weights.cumsum()[:, None]
    np.testing.assert_array_equal(found.updates, times)
    np.testing.assert_allclose(np.exp(found.last), seen[times], rtol=1e-12)
    np.testing.assert_allclose(np.exp(found.average), means[times], rtol=1e-12)


def test_runs_start_at_reference_and_average_later_policies(float64):
  game = make_game(matrices.random(3), [0.5, 0.3, 0.2], 0.1)
  solver = solvers.self_play(1.0)
  found = solve(solver, game, np.array([0, 2, 3, 4]), weight=lambda count: 1.0 * (count > 2))
  np.testing.assert_array_equal(found.last[0], game.log_reference)
  np.testing.assert_allclose(found.average[2], found.last[2], rtol=1e-12)
  expected = (np.exp(found.last[2]) + np.exp(found.last[3])) / 2
  np.testing.assert_allclose(np.exp(found.average[3]), expected, rtol=1e-12)


@pytest.mark.parametrize('total', [0, 1, 5, 100, 10_000])
def test_log_spaced_updates_include_both_ends(total):
  times = log_spaced_updates(total)
  assert times[0] == 0
  assert times[-1] == total
  assert (np.diff(times) > 0).all()
  assert len(times) <= 200
