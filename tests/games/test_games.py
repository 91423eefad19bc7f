"""Games, their solvers as pairs of functions, what is refused, and what a matrix says by itself."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from solving import at, divergence, gap, gaps, logs, nash, path, paths

from nlhf_jax.errors import UserError
from nlhf_jax.games import choice, exact, game, matrices, rlhf, solvers, spectrum
from nlhf_jax.games.game import make_game
from nlhf_jax.games.solve import solve, when

# How to make every solver, with what number for each of three games; then how close it comes
# to which equilibrium in 3000 updates: its last policy or its average, at the price or without.
SIZES = (1.0, 0.9, 0.8)
INVERSES = (1.0, 1.2, 1.3)
TABLE = {
  'nash_md': ((SIZES,), 'last', 'priced', 2e-2),
  'nash_md_decreasing': ((), 'last', 'priced', 1e-6),
  'self_play': ((SIZES,), 'last', 'priced', 1e-25),
  'mwu': (((0.1, 0.2, 0.3),), 'average', 'free', 2e-2),
  'sppo': (((0.1, 0.2, 0.3),), 'average', 'free', 2e-2),
  'inpo': ((INVERSES,), 'last', 'priced', 1e-25),
  'nash_ema': ((SIZES, (0.5, 0.6, 0.7)), 'last', 'priced', 1e-25),
  'mmd': ((SIZES,), 'last', 'priced', 1e-25),
  'mpo': ((SIZES, (30, 40, 50)), 'last', 'free', 1e-7),
  'mmd_ema': ((SIZES, (0.05, 0.04, 0.03)), 'last', 'free', 1e-7),
  'comal': ((INVERSES, (30, 40, 50)), 'last', 'free', 1e-7),
  'optimistic': ((SIZES,), 'last', 'priced', 1e-25),
  'optimistic_mwu': ((SIZES,), 'last', 'free', 1e-9),
  'extragradient': ((SIZES,), 'last', 'priced', 1e-25),
  'mirror_prox': ((SIZES,), 'last', 'priced', 1e-25),
  'best_response': (((0.1, 0.15, 0.2),), 'last', 'priced', 1e-25),
  'smooth_fictitious_play': ((), 'last', 'priced', 1e-5),
  'fictitious_play': ((), 'last', 'free', 1e-2),
  'regret_matching': ((), 'average', 'free', 1e-2),
  'regret_matching_plus': ((), 'average', 'free', 1e-2),
  'newton': ((), 'last', 'priced', 1e-25),
  'anderson': ((), 'last', 'priced', 1e-25),
  'proximal_point': ((SIZES,), 'last', 'priced', 1e-25),
}
NEED_SUPPORT = ('newton', 'anderson', 'proximal_point')


def maker(name):
  return getattr(solvers, name, None) or getattr(exact, name)


def numbers(name, chosen):
  return tuple(np.asarray(column)[chosen] for column in TABLE[name][0])


def stepped(name, chosen, game, start, updates):
  """The policy after some updates, made one by one as a user would."""
  solver = maker(name)(*(number.item() for number in numbers(name, chosen)))
  state = solver.init(game, jnp.asarray(start))
  for _ in range(updates):
    state = solver.update(game, state)
  assert state.count == updates
  return np.array(state.log_pi)


# --- Solvers ---


def test_the_table_has_every_solver():
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
  """Three games at prices of their own, and starts for them."""
  payoffs = np.stack([matrices.rock_paper_scissors(*row) for row in GENERIC])
  mu, starts = np.random.default_rng(1).dirichlet(np.full(3, 5.0), (2, 3))
  return at(make_game(payoffs, mu), np.array([0.1, 0.15, 0.2])), logs(starts)


GENERIC = np.array([[0.2, 0.3, 0.5], [0.5, 0.3, 0.4], [0.3, 0.3, 0.2]])


@pytest.mark.parametrize('name', TABLE)
def test_every_solver_runs_over_games_starts_and_numbers_at_once_and_converges(name, three):
  games, starts = three
  _, what, price, tolerance = TABLE[name]
  found = paths(maker(name), games, np.array([3, 3000]), starts, numbers(name, slice(None)))
  for i in range(3):
    one = jax.tree.map(lambda leaf, i=i: leaf[i], games)
    alone = stepped(name, i, one, starts[i], updates=3)
    # A best action has the others at -inf.
    np.testing.assert_allclose(np.exp(found.last[i, 0]), np.exp(alone), rtol=0, atol=1e-12)
    judged = one if price == 'priced' else at(one, 0)
    assert gap(judged, getattr(found, what)[i, 1]) < tolerance


@pytest.mark.parametrize('name', TABLE)
def test_a_single_action_is_always_played(name, float64):
  alone = make_game([[0.0]], [1.0], 0.2)
  assert stepped(name, 0, alone, [0.0], updates=12) == [0.0]


def test_a_game_of_one_action_has_every_answer(float64):
  nothing, one = np.zeros((1, 1)), make_game([[0.0]], [1.0], 0.2)
  assert exact.maximal_lottery(nothing) == [1.0]
  found = exact.equilibrium(one)
  assert found == (0.0, 0.0, 0)
  assert gap(one, found.log_pi) == gap(at(one, 0), found.log_pi) == 0
  assert spectrum.sigma(one, found.log_pi) == 0
  assert choice.condorcet_winner(nothing) == 0
  assert choice.borda_scores(nothing) == [0.5]
  assert choice.three_cycles(nothing) == choice.worst_defeats(nothing) == 0
  compared = rlhf.compare(one, jnp.ones(1))
  assert compared == (0.0, 0.0, 0.0, 0.5, 0.0, 0.0)


@pytest.mark.parametrize('name', TABLE)
@pytest.mark.parametrize('size', [0.0, 1e6])
def test_payoffs_of_any_size_leave_policies(name, size, float64):
  game = make_game(size * matrices.rock_paper_scissors(*GENERIC[0]), None, 0.2)
  policy = np.exp(stepped(name, 0, game, logs([0.5, 0.3, 0.2]), updates=4))
  np.testing.assert_allclose(policy.sum(), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize('name', sorted(TABLE.keys() - {*NEED_SUPPORT}))
def test_policies_may_have_zeros(name, float64):
  game = make_game(matrices.rock_paper_scissors(*GENERIC[0]), [0.5, 0.3, 0.2], 0.2)
  policy = np.exp(stepped(name, 0, game, logs([0, 0.4, 0.6]), updates=3))
  np.testing.assert_allclose(policy.sum(), 1, rtol=0, atol=1e-12)
  # Steps around the last policy leave zeros alone; a first step that forgets it, or a response
  # to it, does not.
  forget = ('nash_md_decreasing', 'best_response', 'smooth_fictitious_play')
  if name in forget:
    assert policy.min() > 0
  elif 'regret' not in name and name != 'fictitious_play':
    assert policy[0] == 0


def test_steps_that_pull_all_the_way_forget_zeros_at_any_price(float64):
  """1 / tau times tau is not 1 for every tau; the pull is still whole."""
  payoff, start = matrices.rock_paper_scissors(), jnp.asarray(logs([1, 0, 0]))
  taus = np.arange(1, 100) / 7
  assert not (taus * (1 / taus) == 1).all()
  for tau in taus:
    state = solvers.nash_md_decreasing().init(make_game(payoff, None, tau), start)
    state = solvers.nash_md_decreasing().update(make_game(payoff, None, tau), state)
    assert np.isfinite(state.log_pi).all()


def test_multiplicative_weights_are_self_play_without_a_price(float64):
  game = make_game(matrices.random(4), None, 0.3)
  free = path(solvers.self_play, at(game, 0), np.array([20]), None, (0.5,)).last
  np.testing.assert_array_equal(path(solvers.mwu, game, np.array([20]), None, (0.5,)).last, free)


def test_schedules_may_be_functions_of_time_and_price(float64):
  def growing(count, tau):
    return (count + 1) / (1 + tau)

  game = make_game(matrices.random(4), None, 0.3)
  for make in (solvers.self_play, solvers.mmd, solvers.inpo, solvers.nash_ema):
    args = (growing, 0.5) if make is solvers.nash_ema else (growing,)
    state = make(*args).init(game, game.log_reference)
    assert np.isfinite(make(*args).update(game, state).log_pi).all()


def test_single_precision_is_enough_to_begin_with():
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


def test_runs_begin_at_the_reference_and_may_skip_the_first_policies(float64):
  game = make_game(matrices.random(3), [0.5, 0.3, 0.2], 0.1)
  solver = solvers.self_play(1.0)
  found = solve(solver, game, np.array([0, 2, 3, 4]), weight=lambda count: 1.0 * (count > 2))
  np.testing.assert_array_equal(found.last[0], game.log_reference)
  np.testing.assert_allclose(found.average[2], found.last[2], rtol=1e-12)
  expected = (np.exp(found.last[2]) + np.exp(found.last[3])) / 2
  np.testing.assert_allclose(np.exp(found.average[3]), expected, rtol=1e-12)


@pytest.mark.parametrize('total', [0, 1, 5, 100, 10_000])
def test_times_to_look_at_begin_with_the_start_and_end_with_the_end(total):
  times = when(total)
  assert times[0] == 0
  assert times[-1] == total
  assert (np.diff(times) > 0).all()
  assert len(times) <= 200


# --- What is refused ---

RPS = matrices.rock_paper_scissors()
BAD = [
  ([[0, np.nan], [0.1, 0]], None, 0.1, r'payoff\[0, 1\] is nan; it must be finite'),
  ([[0, np.inf], [-np.inf, 0]], None, 0.1, r'payoff\[0, 1\] is inf'),
  (np.where(np.arange(5)[:, None, None] == 3, np.nan, RPS), None, 0.1, r'payoff\[3, 0, 0\] is nan'),
  ([[0.0, 0.1, 0.2], [-0.1, 0.0, 0.3]], None, 0.1, r'square matrix, not .* shape \(2, 3\)'),
  ([0.0, 0.1], None, 0.1, r'shape \(2,\)'),
  (np.zeros((0, 0)), None, 0.1, r'shape \(0, 0\)'),
  (
    *([[0, 0.25], [0.25, 0]], None, 0.1),
    r'not antisymmetric: \[0, 1\] is 0\.25 and \[1, 0\] is 0\.25, which add up to 0\.5 ',
  ),
  ([[0.5, 0.2], [-0.2, 0.5]], None, 0.1, r'\[0, 0\] is 0\.5 and \[0, 0\] is 0\.5.* up to 1 '),
  (
    *(np.stack([RPS, RPS + 1e-6 * np.eye(3)[[1, 0, 2]]]), None, 0.1),
    r'\[1, 0, 1\] is -0\.499999 and \[1, 1, 0\] is 0\.500001, which add up to 2e-06 ',
  ),
  (RPS, None, -0.1, r'tau=-0\.1 must be at least 0'),
  (RPS, None, np.nan, 'tau=nan must be'),
  (RPS, None, np.inf, 'tau=inf must be .* finite'),
  (RPS, [0.5, 0.5, 0], 0.1, r'reference\[2\] is 0\.0; .*leave the action out'),
  (RPS, [0.5, 0.7, -0.2], 0.1, r'reference\[2\] is -0\.2'),
  (RPS, [0.5, np.nan, 0.5], 0.1, r'reference\[1\] is nan'),
  (RPS, [0.5, 0.5], 0.1, r'3 actions a probability; its shape is \(2,\)'),
  (RPS, np.array(0.5), 0.1, r'its shape is \(\)'),
  (RPS, [0.5, 0.5, 0.5], 0.1, r'must sum to 1; it sums to 1\.5'),
]


@pytest.mark.parametrize(('payoff', 'reference', 'tau', 'message'), BAD)
def test_what_is_no_game_is_refused(payoff, reference, tau, message):
  with pytest.raises(UserError, match=message):
    make_game(payoff, reference, tau)


def test_the_linear_program_refuses_what_is_no_game():
  with pytest.raises(UserError, match='not antisymmetric'):
    exact.maximal_lottery(np.array([[0.0, 0.3], [0.3, 0.0]]))


def test_payoffs_may_miss_antisymmetry_by_rounding():
  make_game(RPS + 1e-12)
  make_game(1e9 * matrices.with_equilibrium(matrices.random(5), np.full(5, 0.2)))


EXPLICIT = (solvers.nash_md, solvers.self_play, solvers.extragradient, solvers.optimistic)
IMPLICIT = (solvers.mmd, solvers.mirror_prox)


def begin(solver, tau):
  one = make_game(RPS, None, tau)
  return solver.init(one, one.log_reference)


@pytest.mark.parametrize('make', EXPLICIT)
def test_steps_beyond_the_reference_are_refused(make):
  with pytest.raises(UserError, match=r'step of 10\.5 at tau=0\.1 goes 1\.05 .* at most 1 / tau'):
    begin(make(10.5), 0.1)
  begin(make(10.0), 0.1)
  begin(make(10.5), 0.0)


def test_inverse_and_implicit_steps_have_limits_of_their_own():
  with pytest.raises(UserError, match='must be at most 1 / tau = 10'):
    begin(solvers.inpo(0.05), 0.1)
  for make in IMPLICIT:
    begin(make(1e6), 0.1)
  begin(solvers.mwu(1e6), 0.1)


@pytest.mark.parametrize('eta', [0.0, -1.0, np.nan])
@pytest.mark.parametrize('make', [*EXPLICIT, *IMPLICIT, solvers.mwu, solvers.optimistic_mwu])
def test_steps_that_are_no_steps_are_refused(make, eta):
  with pytest.raises(UserError, match='must be above 0, and finite'):
    begin(make(eta), 0.1)


@pytest.mark.parametrize('make', [*EXPLICIT, solvers.mwu])
def test_infinite_steps_are_refused(make):
  with pytest.raises(UserError, match=r'step, inf .* must be above 0, and finite'):
    begin(make(np.inf), 0.1)


@pytest.mark.parametrize('eta', [0.0, -1.0, np.nan])
def test_inverse_steps_that_are_no_steps_are_refused(eta):
  for solver in (solvers.inpo(eta), solvers.comal(eta, 10)):
    with pytest.raises(UserError, match='must be above 0, and finite'):
      begin(solver, 0.1)


def test_the_decreasing_step_needs_a_price():
  with pytest.raises(UserError, match='step, inf at tau=0, must be'):
    begin(solvers.nash_md_decreasing(), 0.0)


# --- Divergences, gaps and values ---


def test_divergences_keep_their_digits(float64):
  policy = np.random.default_rng(0).dirichlet(np.ones(5))
  for size in (1e-3, 1e-6, 1e-9):
    change = size * np.array([1.0, -2.0, 0.5, 3.0, -1.0])
    other = special.log_softmax(np.log(policy) + change)
    variance = policy @ change**2 - (policy @ change) ** 2
    np.testing.assert_allclose(
      divergence(np.log(policy), other), variance / 2, rtol=3 * size + 1e-6
    )
  assert divergence(np.log(policy), np.log(policy)) == 0


def test_divergences_of_policies_with_zeros(float64):
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


def test_the_first_of_equal_actions_is_the_best(float64):
  free = make_game(matrices.three_raters())
  for policy in ([1 / 3, 1 / 3, 1 / 3], [0.4, 0.3, 0.3], [0.1, 0.1, 0.8]):
    gain = np.round(matrices.three_raters() @ policy, 12)
    reply = jax.jit(game.log_best_response)(free, logs(policy))
    np.testing.assert_array_equal(np.exp(reply), np.eye(3)[gain.argmax()])


# --- Spectrum ---


def test_sigma_is_the_largest_eigenvalue_of_the_best_response(float64):
  one = make_game(matrices.random(6, 4), np.random.default_rng(4).dirichlet(np.ones(6)), 0.05)
  pi = np.exp(nash(one))
  jacobian = (np.diag(pi) - np.outer(pi, pi)) @ np.array(one.payoff) / 0.05
  found = jax.jit(spectrum.sigma)(one, np.log(pi))
  np.testing.assert_allclose(found, abs(np.linalg.eigvals(jacobian)).max(), rtol=1e-10)


def test_a_game_that_does_not_turn_allows_every_step():
  steps = spectrum.allowed(0.0, 0.1)
  assert steps == (10.0, 10.0, np.inf, 1.0, 9.0)


# --- Reinforcement learning on a fitted reward ---


def test_a_reward_picks_who_wins_most_where_nash_picks_who_loses_to_none(float64):
  payoff = np.array([[0, 0.1, 0.1], [-0.1, 0, 0.45], [-0.1, -0.45, 0]])
  found = jax.jit(rlhf.compare)(make_game(payoff, None, 0.01), np.full(3, 1 / 3))
  assert np.argmax(found.log_rlhf) == choice.borda_scores(payoff).argmax() == 1
  assert np.argmax(found.log_nash) == choice.condorcet_winner(payoff) == 0
  assert found.nash_beats_rlhf > 0.59
  assert found.rlhf_exploitability > 0.09 > 0.01 > found.nash_exploitability


# --- Social choice ---

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
def test_regular_tournaments_have_as_many_cycles_as_can_be(actions):
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
def test_a_payoff_is_a_sum_of_turns(payoff, planes):
  turns = choice.turns(payoff)
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
def test_an_equilibrium_without_a_price_may_be_one_of_many(payoff, only):
  assert exact.is_only_equilibrium(payoff, exact.maximal_lottery(payoff)) is only


# --- Games by name ---

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


def test_the_lists_have_every_game():
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
def test_a_strict_cycle_is_even(actions, float64):
  payoff = matrices.strict_cycle(actions)
  assert gap(make_game(payoff), np.full(actions, -np.log(actions))) < 1e-15
  assert set(np.unique(payoff)) <= {-0.5, 0.0, 0.5}


def test_the_dial_turns_from_a_ranking_to_a_cycle():
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


def test_placements_are_all_ways_to_place_soldiers():
  for soldiers, fields, count in ((5, 3, 21), (10, 3, 66), (5, 4, 56)):
    ways = matrices.placements(soldiers, fields)
    assert len({tuple(way) for way in ways}) == count
    assert (ways.sum(axis=1) == soldiers).all()


def test_morra_pays_the_only_right_guess():
  payoff = 12 * matrices.morra(3)
  actions = [(shown, guess) for shown in (1, 2, 3) for guess in (1, 2, 3)]
  for i, (shown, guess) in enumerate(actions):
    for j, (other, guessed) in enumerate(actions):
      won = (guess == other) - (guessed == shown)
      np.testing.assert_allclose(payoff[i, j], won * (shown + other), atol=1e-14)
