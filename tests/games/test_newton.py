"""Newton solves all games to machine precision, and its results have derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from nlhf_jax.games import asymmetric, exact, matrices, solvers
from nlhf_jax.games.game import Game, make_game
from tests.games.solving import at, gap, gaps, nash, nashes, path

pytestmark = pytest.mark.usefixtures('float64')

TAUS = (0.1, 0.02, 0.005, 0.001)
SAME_TAU = Game(0, 0, None)  # axes of a batch of games that share tau

find_one = jax.jit(exact.equilibrium)
find_all = jax.jit(jax.vmap(exact.equilibrium, (SAME_TAU, None)))


def batch(actions, count, seed=0):
  mu = np.random.default_rng(seed).dirichlet(np.ones(actions), count)
  return make_game(matrices.random(actions, seed, (count,)), mu)


# --- Newton with continuation ---


@pytest.mark.parametrize('actions', [3, 10, 32, 100])
def test_newton_solves_a_thousand_random_games(actions):
  games = batch(actions, 250, seed=actions)
  for tau, most in zip(TAUS, (7, 15, 34, 139), strict=True):
    found = find_all(at(games, tau), 1e-12)
    assert (found.exploitability <= 1e-12).all()
    assert found.steps.max() <= most
    np.testing.assert_allclose(np.exp(found.log_pi).sum(axis=1), 1, rtol=0, atol=1e-14)


@pytest.mark.parametrize('actions', [3, 10, 32])
def test_newton_solves_random_games_at_any_tau(actions):
  games = batch(actions, 100, seed=actions)
  for tau in (1e-4, 1e-5, 1e-6, 1e-8):
    found = find_all(at(games, tau), 1e-12)
    assert (found.exploitability <= 1e-12).all()
    assert found.steps.max() <= 100


FAMILIES = {
  'morra': matrices.morra(3),
  'blotto': matrices.blotto(5, 3),
  'transitive': matrices.dial(20, 0.0),
  'half cyclic': matrices.dial(20, 0.5),
  'disc': matrices.random_disc(15),
  'cycle': matrices.strict_cycle(7),
  'rewards': matrices.bradley_terry(np.linspace(0, 5, 20)),
  'population': matrices.random_population(20, 9),
  'dice': matrices.dice(),
  'huge': 1e6 * matrices.random(10, 1),
}


@pytest.mark.parametrize('payoff', FAMILIES.values(), ids=FAMILIES.keys())
def test_newton_solves_named_games_at_any_tau(payoff):
  skewed = np.random.default_rng(0).dirichlet(np.full(len(payoff), 0.3)) + 1e-200
  for reference in (None, skewed / skewed.sum()):
    for tau in (0.1, 1e-3, 1e-5):
      game = at(make_game(payoff, reference), tau)
      found = find_one(game)
      assert found.exploitability <= 1e-12
      assert found.steps <= 100


@pytest.mark.parametrize('actions', [3, 10])
def test_small_gaps_are_accurate(actions):
  games = batch(actions, 100, seed=1)
  naive = []
  for tau in (0.1, 0.02):
    regularised = at(games, np.full(100, tau))
    log_pi = nashes(regularised)
    assert (jax.vmap(gap)(regularised, log_pi) < 1e-25).all()
    log_pi, mu = np.array(log_pi), np.exp(games.log_reference)
    gains = np.einsum('sij,sj->si', games.payoff, np.exp(log_pi))
    log_sum = special.logsumexp(gains / tau, axis=1, b=mu)
    naive.append(tau * (log_sum + special.rel_entr(np.exp(log_pi), mu).sum(axis=1)))
  assert 1e-18 < abs(np.array(naive)).max() < 1e-14


def test_newton_returns_nan_for_zero_tau():
  found = find_one(make_game(matrices.random(4)))
  assert np.isnan(found.log_pi).all()
  assert found.steps == 0


def test_too_few_steps_show_in_the_gap():
  found = jax.jit(partial(exact.equilibrium, limit=2))(make_game(matrices.random(10), None, 0.001))
  assert found.steps == 2
  assert found.exploitability > 1e-4


@pytest.mark.parametrize(
  'payoff', [matrices.rock_paper_scissors(0.2, 0.3, 0.5), matrices.random(9, 5)], ids=len
)
def test_equilibria_approach_the_linear_program(payoff):
  lottery = exact.maximal_lottery(payoff)
  assert (payoff @ lottery).max() < 1e-12
  far = [
    abs(np.exp(nash(make_game(payoff, None, tau))) - lottery).max() for tau in (1e-3, 1e-5, 1e-7)
  ]
  assert far[0] > 50 * far[1] > 2500 * far[2]
  assert far[2] < 1e-5


def test_proximal_point_solves_the_unregularised_game():
  for seed in range(5):
    game = make_game(matrices.random(7, seed))
    last = path(exact.proximal_point, game, np.array([60]), None, (200.0,)).last[0]
    lottery = exact.maximal_lottery(np.array(game.payoff))
    np.testing.assert_allclose(np.exp(last), lottery, rtol=0, atol=1e-10)
    assert gap(game, last) < 1e-10


def test_asymmetric_games_are_solved():
  """Random 4 x 6 games at tau = .05; the first seven steps lead far below the tolerance."""
  random = np.random.default_rng(0)
  count = 200
  games = asymmetric.AsymmetricGame(
    random.uniform(-1, 1, (count, 4, 6)),
    np.log(random.dirichlet(np.ones(4), count)),
    np.log(random.dirichlet(np.ones(6), count)),
    np.full(count, 0.05),
  )
  found = jax.jit(jax.vmap(asymmetric.equilibrium))(games)
  assert (found.duality_gap <= 1e-12).all()
  assert (found.duality_gap >= 0).all()
  assert found.steps.max() <= 20
  best = jax.vmap(asymmetric.log_best_responses)(games, found.pair)
  for one, other in zip(best, found.pair, strict=True):
    np.testing.assert_allclose(np.exp(one), np.exp(other), rtol=0, atol=1e-5)


def test_asymmetric_solver_agrees_on_symmetric_games():
  payoff, mu = matrices.random(5, 1), np.random.default_rng(1).dirichlet(np.ones(5))
  game = asymmetric.AsymmetricGame(payoff, np.log(mu), np.log(mu), np.float64(0.02))
  pair = jax.jit(partial(asymmetric.equilibrium, tolerance=1e-24))(game).pair
  expected = np.exp(nash(make_game(payoff, mu, 0.02)))
  np.testing.assert_allclose(np.exp(pair), [expected, expected], rtol=0, atol=1e-10)


# --- Derivatives ---

SKEW = matrices.random(4, 7)
DIRECTION = Game(matrices.random(4, 8), np.array([0.3, -0.2, 0.5, -0.6]), np.float64(1.0))


def policy(game):
  return jnp.exp(exact.equilibrium(game, 1e-26).log_pi)


forward = jax.jit(lambda game, tangent: jax.jvp(policy, (game,), (tangent,))[1])
reverse = jax.jit(jax.jacrev(policy))


@pytest.fixture(params=[0.3, 0.05])
def regularised(request):
  return make_game(SKEW, np.random.default_rng(7).dirichlet(np.ones(4)), request.param)


@pytest.mark.parametrize('part', [0, 1, 2], ids=Game._fields)
def test_derivatives_equal_finite_differences(regularised, part):
  chosen = [part == i for i in range(3)]
  tangent = Game(*(chosen[i] * jnp.asarray(DIRECTION[i]) for i in range(3)))
  width = 1e-5 if part < 2 else 1e-6

  def moved(by):
    return np.exp(nash(jax.tree.map(lambda at, way: at + by * way, regularised, tangent)))

  expected = (moved(width) - moved(-width)) / (2 * width)
  assert abs(expected).max() > 1e-2
  np.testing.assert_allclose(forward(regularised, tangent), expected, rtol=0, atol=2e-8)
  along = jax.tree.map(
    lambda slope, way: np.tensordot(slope, way, way.ndim), reverse(regularised), tangent
  )
  np.testing.assert_allclose(along[part], forward(regularised, tangent), rtol=0, atol=1e-12)


def test_batched_derivatives_equal_those_of_each_game():
  games = at(batch(4, 8, seed=3), np.geomspace(0.02, 1, 8))
  together = jax.jit(jax.vmap(jax.jacrev(policy)))(games)
  for i in range(8):
    alone = reverse(jax.tree.map(lambda leaf, i=i: leaf[i], games))
    for one, other in zip(alone, together, strict=True):
      np.testing.assert_allclose(other[i], one, rtol=1e-9, atol=1e-9)


def test_derivative_has_the_closed_form():
  """d pi = D B (d log mu + dA pi / tau - A pi d tau / tau^2), B the inverse bordered by sum pi."""
  tau = 0.05
  game = make_game(SKEW, np.random.default_rng(7).dirichlet(np.ones(4)), tau)
  pi = np.exp(nash(game))
  bordered = np.block(
    [[np.eye(4) - SKEW * pi / tau, np.ones((4, 1))], [pi[None], np.zeros((1, 1))]]
  )
  change = DIRECTION.log_reference + DIRECTION.payoff @ pi / tau - SKEW @ pi / tau**2
  solved = np.linalg.solve(bordered, np.append(change, 0))[:4]
  np.testing.assert_allclose(forward(game, DIRECTION), pi * solved, rtol=0, atol=1e-12)


# --- Anderson, for larger games ---


@pytest.mark.parametrize(('tau', 'updates'), [(0.1, 20), (0.02, 60), (0.005, 250)])
def test_anderson_solves_a_large_game(tau, updates):
  game = make_game(matrices.random(300, 1), None, tau)
  last = path(exact.anderson, game, np.array([updates, 400])).last
  assert (gaps(game, last) < 1e-12).all()


def test_anderson_needs_far_fewer_updates_than_mmd():
  game = make_game(matrices.random(100, 1), None, 0.02)
  times = np.arange(0, 8000, 10)
  size = 0.02 / float(abs(game.payoff).max()) ** 2  # the step of MMD's theorem

  def first(make, numbers=()):
    solved = gaps(game, path(make, game, times, None, numbers).last) < 1e-12
    assert solved[-1]
    return times[np.argmax(solved)]

  assert 50 * first(exact.anderson) < first(solvers.mmd, (size,))
