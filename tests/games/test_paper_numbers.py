"""Numbers on matrix games from the paper of Nash learning, and numbers computed for this project.

Numbers in texts are compared as they were printed, to half a unit in their last place.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from nlhf_jax.games import choice, exact, matrices, rlhf, solvers, spectrum
from nlhf_jax.games.game import gains, log_best_response, make_game
from tests.games.solving import (
  MU,
  assert_printed,
  divergence,
  divergences,
  gap,
  gaps,
  logs,
  nash,
  nashes,
  path,
)

pytestmark = pytest.mark.usefixtures('float64')

ELO = matrices.elo_example()
TYPES = matrices.rater_types(0.1)
RATERS = matrices.three_raters()
CYCLE = matrices.strict_cycle(3)

fitted = jax.jit(rlhf.bradley_terry_reward)
reply = jax.jit(log_best_response)
gained = jax.jit(gains)


def equilibrium(payoff, reference, tau):
  return np.exp(nash(make_game(payoff, reference, tau)))


# --- Section 2.3: the matrices ---


def test_a_bradley_terry_matrix():
  printed = [[1 / 2, 1 / 10, 1 / 3], [9 / 10, 1 / 2, 9 / 11], [2 / 3, 2 / 11, 1 / 2]]
  np.testing.assert_allclose(ELO + 0.5, printed, rtol=0, atol=2e-16)
  np.testing.assert_allclose(exact.maximal_lottery(ELO), [0, 1, 0], atol=1e-15)


def test_constrained_best_reward_is_not_most_preferred():
  rewards = np.array([0, np.log(9), np.log(2)])
  best_reward, preferred = np.array([2, 1, 0]) / 3, np.array([0, 0, 1])
  assert_printed([best_reward @ rewards, preferred @ rewards], '.732408 .693147')
  assert best_reward @ rewards > preferred @ rewards
  wins = preferred @ (ELO + 0.5) @ best_reward
  np.testing.assert_allclose(wins, 50 / 99, rtol=1e-15)
  assert_printed(wins, '.505051')
  for a in np.linspace(0, 1 / 3, 7):
    member = np.array([2 * a, a, 1 - 3 * a])
    np.testing.assert_allclose(preferred @ ELO @ member, 3 * a / 198, atol=1e-16)


@pytest.mark.parametrize('e', [-0.3, -0.1, 0.0, 0.1, 0.2, 0.3])
def test_rater_types_have_the_printed_preferences_and_equilibrium(e):
  payoff = matrices.rater_types(e)
  found = [payoff[1, 0], payoff[2, 0], payoff[2, 1]]
  np.testing.assert_allclose(
    found, [1 / 6 - e / 2, -1 / 6 - e / 4, 1 / 6 + e / 4], rtol=0, atol=1e-16
  )
  expected = [1 / 3 + e / 2, 1 / 3 + e / 2, 1 / 3 - e]
  np.testing.assert_allclose(exact.maximal_lottery(payoff), expected, rtol=0, atol=1e-12)
  assert gap(make_game(payoff), logs(expected)) < 1e-15
  np.testing.assert_allclose(
    choice.borda_scores(payoff), [0.5 + e / 4, 0.5 - e / 4, 0.5], rtol=0, atol=1e-15
  )
  best = np.argmax(fitted(payoff, np.full(3, 1 / 3)))
  assert e == 0 or best == (0 if e > 0 else 1)


def test_rater_types_have_the_published_lottery():
  assert_printed(exact.maximal_lottery(TYPES), '.383333 .383333 .233333')


def test_at_a_third_the_equilibrium_is_not_unique():
  game = make_game(matrices.rater_types(1 / 3))
  for policy in ([1, 0, 0], [1 / 2, 1 / 2, 0]):
    assert gap(game, logs(policy)) < 1e-15


def test_rock_paper_scissors_equilibrium():
  for a, b, c in np.random.default_rng(0).random((10, 3)):
    payoff = np.array([[0, -a, b], [a, 0, -c], [-b, c, 0]])
    np.testing.assert_allclose(
      exact.maximal_lottery(payoff), np.array([c, b, a]) / (a + b + c), rtol=0, atol=1e-12
    )


def test_dice_beat_each_other_in_a_cycle():
  payoff = matrices.dice()
  np.testing.assert_allclose([payoff[0, 1], payoff[1, 2], payoff[2, 0]], 5 / 9 - 1 / 2, atol=1e-16)
  np.testing.assert_array_equal(np.diag(payoff), 0)
  np.testing.assert_allclose(exact.maximal_lottery(payoff), 1 / 3, atol=1e-12)


def test_transitive_raters_form_a_cyclic_population():
  printed = [[1 / 2, 2 / 3, 1 / 3], [1 / 3, 1 / 2, 2 / 3], [2 / 3, 1 / 3, 1 / 2]]
  np.testing.assert_allclose(RATERS + 0.5, printed, rtol=0, atol=2e-16)
  np.testing.assert_allclose(exact.maximal_lottery(RATERS), 1 / 3, atol=1e-12)
  for rater in ([2, 1, 3], [4, 6, 5], [9, 8, 7]):
    assert choice.condorcet_winner(matrices.population([rater])) == np.argmax(rater)
  assert choice.condorcet_winner(RATERS) is None


# Sampling, the fitted rewards of the second and third action, and P(y > pi).
EVEN = (1 / 3, 1 / 3, 1 / 3)
FITS = [
  (RATERS, EVEN, '0.000000 0.000000', '.500000 .500000 .500000'),
  (RATERS, (0.6, 0.3, 0.1), '-0.475869 0.067956', '.533333 .416667 .550000'),
  (RATERS, (0.1, 0.3, 0.6), '0.543825 0.067956', '.450000 .583333 .466667'),
  (RATERS, (0.25, 0.5, 0.25), '-0.167639 -0.335278', '.541667 .500000 .458333'),
  (TYPES, EVEN, '-0.200502 -0.100251', '.525000 .475000 .500000'),
  (TYPES, (0.6, 0.3, 0.1), '0.268756 -0.168514', '.484167 .550833 .442500'),
  (TYPES, (0.1, 0.3, 0.6), '-0.756917 -0.172391', '.580000 .396667 .538333'),
  (TYPES, (0.25, 0.5, 0.25), '-0.033467 0.234665', '.489583 .481250 .547917'),
]


@pytest.mark.parametrize(('payoff', 'sampling', 'rewards', 'preferences'), FITS)
def test_fitted_rewards_move_with_the_sampling(payoff, sampling, rewards, preferences):
  reward = np.array(fitted(payoff, np.array(sampling)))
  preferred = payoff @ np.array(sampling) + 0.5
  assert_printed(reward[1:], rewards)
  assert_printed(preferred, preferences)
  # RLHF is a best response to the sampling policy; in a tie it is one of the two.
  if payoff is TYPES or sampling != EVEN:
    np.testing.assert_array_equal(np.argsort(reward), np.argsort(preferred))


@pytest.mark.parametrize('sampling', [EVEN, (0.6, 0.3, 0.1), (0.1, 0.3, 0.6), (0.25, 0.5, 0.25)])
def test_bradley_terry_reward_is_found_under_any_sampling(sampling):
  assert_printed(fitted(ELO, np.array(sampling)), '0 2.197225 0.693147')


def test_the_fit_preserves_preferences_to_the_sampling():
  """Proposition 2, on any preferences and sampling."""
  payoffs = matrices.random(4, 1, (100,))
  sampling = np.random.default_rng(1).dirichlet(np.ones(4), 100)
  reward = np.array(jax.vmap(fitted)(payoffs, sampling))
  found = special.expit(reward[:, :, None] - reward[:, None, :])
  np.testing.assert_allclose(
    np.einsum('sij,sj->si', found, sampling),
    np.einsum('sij,sj->si', payoffs + 0.5, sampling),
    rtol=0,
    atol=1e-12,
  )


def test_sampling_on_the_same_support_changes_rewards():
  """Theorem 2: its construction, on the pair that the fit orders wrongly."""
  reward = np.array(fitted(RATERS, MU))
  wrong = abs(special.expit(reward[0] - reward[1]) - 0.5 - RATERS[0, 1])
  assert wrong > 0.01
  changed = MU / 2
  changed[1] += 0.5
  moved = np.array(fitted(RATERS, changed))
  assert abs((moved[0] - moved[1]) - (reward[0] - reward[1])) > 0.01


# --- Section 2.4: algorithms ---

PATHS = [
  (
    *(RATERS, 0.1),
    '.60304022 .17380593 .22315385',
    '.73931960 .11511325 .14556715 .62368347 .14540125 .23091528 .60415183 .17120948 .22463869',
  ),
  (
    *(RATERS, 1.0),
    '.61811999 .27585643 .10602359',
    '.61942187 .27560612 .10497201 .61851788 .27575001 .10573212 .61817345 .27583977 .10598678',
  ),
  (
    *(TYPES, 0.1),
    '.45703149 .44122526 .10174325',
    '.47990622 .46736484 .05272895 .44602114 .46487948 .08909938 .45553518 .44362281 .10084201',
  ),
  (
    *(ELO, 0.1),
    '.03447267 .95196432 .01356302',
    '.03184655 .94636694 .02178651 .03383583 .95170703 .01445714 .03441734 .95195372 .01362894',
  ),
  (
    *(CYCLE, 0.1),
    '.43206532 .23032931 .33760536',
    '.77526257 .01170545 .21303198 .54480948 .19025037 .26494015 .42952888 .23053026 .33994086',
  ),
]


@pytest.mark.parametrize(('payoff', 'tau', 'equilibrium', 'iterates'), PATHS)
def test_nash_md_passes_the_printed_policies(payoff, tau, equilibrium, iterates):
  game = make_game(payoff, MU, tau)
  assert_printed(np.exp(nash(game)), equilibrium)
  last = path(solvers.nash_md_decreasing, game, np.array([1, 10, 100])).last
  assert_printed(np.exp(last), iterates)


@pytest.mark.parametrize('start', [(0.1, 0.1, 0.8), (1.0, 0.0, 0.0)])
def test_the_first_step_forgets_the_start(start):
  game = make_game(RATERS, MU, 0.1)
  times = np.array([1, 10, 100])
  once = path(solvers.nash_md_decreasing, game, times).last
  np.testing.assert_allclose(
    path(solvers.nash_md_decreasing, game, times, logs(start)).last, once, rtol=0, atol=1e-13
  )
  np.testing.assert_allclose(once[0], reply(game, game.log_reference), rtol=0, atol=1e-14)


def decreasing_self_play():
  return solvers.self_play(solvers.decreasing)


DIVERGENCES = [
  (
    *(solvers.nash_md_decreasing, RATERS, 0.1, (1, 2, 10, 100, 1000, 10000)),
    '4.40814e-2 2.53233e-2 3.08702e-3 2.55306e-5 2.64287e-7 2.63183e-9',
  ),
  (
    *(solvers.nash_md_decreasing, TYPES, 0.1, (1, 10, 100, 1000)),
    '1.91594e-2 1.60453e-3 1.29605e-5 1.31092e-7',
  ),
  (
    *(solvers.nash_md_decreasing, CYCLE, 0.02, (10, 100, 1000, 10000)),
    '3.571 .8264 9.094e-3 1.970e-6',
  ),
  (
    *(decreasing_self_play, CYCLE, 0.02, (10, 100, 1000, 10000)),
    '3.554 .8358 9.327e-3 1.973e-6',
  ),
]


@pytest.mark.parametrize(('make', 'payoff', 'tau', 'times', 'printed'), DIVERGENCES)
def test_divergences_fall_as_printed(make, payoff, tau, times, printed):
  game = make_game(payoff, MU, tau)
  assert_printed(divergences(nash(game), path(make, game, np.array(times)).last), printed)


def test_equilibria_have_the_published_values():
  assert_printed(equilibrium(RATERS, MU, 0.05), '.48851489 .19876283 .31272229')
  assert_printed(equilibrium(RATERS, MU, 0.008), '.3527399 .30515499 .34210511')
  for tau, printed in ((0.05, '.17430515'), (0.008, '.23859549')):
    assert_printed(divergence(nash(make_game(RATERS, MU, tau)), np.log(MU)), printed)
  for tau in (0.01, 0.1, 1.0):
    np.testing.assert_allclose(equilibrium(RATERS, None, tau), 1 / 3, rtol=0, atol=1e-15)
  assert_printed(equilibrium(TYPES, None, 0.1), '.40303846 .31317289 .28378865')
  assert_printed(equilibrium(ELO, None, 1.0), '.27233595 .41712469 .31053936')


def test_one_step_has_the_published_policy():
  game, policy = make_game(RATERS, MU, 0.1), np.log([0.2, 0.5, 0.3])
  mixture = special.log_softmax(5 / 7 * policy + 2 / 7 * np.log(MU))
  assert_printed(np.exp(mixture), '.29593442 .46712141 .23694417')
  assert_printed(gained(game, mixture) + 0.5, '.53836287 .49016829 .47146883')
  state = solvers.State(jnp.int32(5), jnp.array(policy))
  for solver, printed in [
    (solvers.nash_md_decreasing(), '.32929587 .45291713 .21778699'),
    (decreasing_self_play(), '.31886890 .47991660 .20121450'),
  ]:
    assert_printed(np.exp(solver.update(game, state).log_pi), printed)
  assert_printed(gap(game, policy), '.05903586')
  assert_printed(np.exp(reply(game, policy)), '.66859494 .28297670 .04842836')


# The part of the reference in the mixture, the fixed point of Nash-MD, its KL and its gap.
LIMITS = [
  (0.125, '.614098 .161560 .224341', '.000556', '.000086'),
  (0.25, '.627078 .150046 .222876', '.002256', '.000343'),
  (0.375, '.642102 .139765 .218133', '.005115', '.000768'),
  (0.5, '.659176 .131115 .209709', '.009182', '.001368'),
  (0.75, '.698369 .119469 .182162', '.021945', '.003250'),
  (1.0, '.739320 .115113 .145567', '.044081', '.006297'),
]


@pytest.mark.parametrize(('beta', 'policy', 'kl', 'exploitability'), LIMITS)
def test_constant_steps_have_the_printed_limits(beta, policy, kl, exploitability):
  game = make_game(RATERS, MU, 0.1)
  last = path(solvers.nash_md, game, np.array([5000]), None, (beta / 0.1,)).last[0]
  assert_printed(np.exp(last), policy)
  assert_printed(divergence(nash(game), last), kl)
  assert_printed(gap(game, last), exploitability)


def test_self_play_has_no_bias():
  game = make_game(RATERS, MU, 0.1)
  last = path(solvers.self_play, game, np.array([5000]), None, (1.0,)).last[0]
  assert_printed(np.exp(last), '.603040 .173806 .223154')
  assert gap(game, last) < 1e-28


LATE = np.arange(19_990, 20_001)


def late(make, eta, tau):
  """The last iterates of 20,000 at a constant step, their moves, and the last's KL."""
  game = make_game(CYCLE, MU, tau)
  last = path(make, game, LATE, None, (eta,)).last
  moves = abs(np.diff(np.exp(last), axis=0)).max(axis=1)
  return moves, divergence(nash(game), last[-1])


@pytest.mark.parametrize(
  ('make', 'eta', 'tau', 'printed'),
  [(solvers.nash_md, 2.0, 0.1, '.0137'), (solvers.nash_md, 5.0, 0.1, '.159')],
)
def test_nash_md_converges_to_its_biased_point(make, eta, tau, printed):
  moves, kl = late(make, eta, tau)
  assert moves.max() < 1e-15
  assert_printed(kl, printed)


def test_self_play_converges_at_small_steps():
  moves, kl = late(solvers.self_play, 2.0, 0.1)
  assert moves.max() < 1e-15
  assert kl < 1e-28


def test_self_play_oscillates_at_large_steps():
  moves, kl = late(solvers.self_play, 5.0, 0.1)
  assert_printed(moves[-1], '.52')
  assert moves.min() > 0.2
  assert kl > 0.1


@pytest.mark.parametrize('make', [solvers.self_play, solvers.nash_md])
@pytest.mark.parametrize('eta', [1.0, 2.0])
def test_neither_converges_at_low_tau(make, eta):
  moves, kl = late(make, eta, 0.02)
  assert moves.min() > 0.01
  assert kl > 0.1


def test_mwu_diverges_and_its_average_converges():
  found = path(solvers.mwu, make_game(RATERS, MU), np.array([100_000]), None, (0.1,))
  assert_printed(np.exp(found.last), '.972 .003 .025')
  assert_printed(np.exp(found.average), '.3340 .3337 .3323')


def test_fictitious_play_takes_the_first_tie():
  game = make_game(RATERS)
  times = np.array([10, 100, 1000, 10_000]) - 1  # the start is the first of as many responses
  last = path(solvers.fictitious_play, game, times, logs([1, 0, 0])).last
  # Printed as .03333, .00833, .0025 and .000783.
  np.testing.assert_allclose(gaps(game, last), [1 / 30, 1 / 120, 1 / 400, 47 / 60_000], rtol=1e-12)


def test_stable_steps_have_the_published_limits():
  for tau, printed in ((0.1, '2.14'), (0.05, '1.17'), (0.02, '.48')):
    turning = spectrum.sigma(make_game(CYCLE, None, tau), jnp.log(jnp.full(3, 1 / 3)))
    assert_printed(tau * turning, '.2887')
    steps = spectrum.stable_steps(float(turning), tau)
    assert_printed(steps.self_play, printed)
    assert steps.nash_md > steps.self_play


# --- Section 7: two actions, and the bound on the divergence ---


@pytest.mark.parametrize(
  ('first', 'tau', 'printed'),
  [(0.5, 1.0, '.549834'), (0.5, 0.1, '.880797'), (0.5, 0.05, '.982014'), (0.2, 0.1, '.648786')],
)
def test_two_actions_have_the_published_equilibrium(first, tau, printed):
  game = make_game([[0, 0.2], [-0.2, 0]], [first, 1 - first], tau)
  assert_printed(np.exp(nash(game))[0], printed)
  for beta in (0.125, 0.5, 1.0):  # the result does not depend on it
    last = path(solvers.nash_md, game, np.array([2000]), None, (beta / tau,)).last[0]
    assert_printed(np.exp(last)[0], printed)


@pytest.mark.parametrize('tau', [0.008, 0.1, 1.0])
def test_equilibrium_kl_is_at_most_half_over_tau(tau):
  mu = np.random.default_rng(2).dirichlet(np.ones(5), 200)
  games = make_game(matrices.random(5, 2, (200,)), mu, tau)
  paid = jax.vmap(divergence)(nashes(games), games.log_reference)
  assert paid.max() <= 1 / (2 * tau)
  # The reason: against the reference the equilibrium wins more than its KL penalty.
  wins = np.einsum('si,sij,sj->s', np.exp(nashes(games)), games.payoff, mu)
  assert (wins - tau * paid >= 0).all()


def test_first_inequality_of_proof_is_equality():
  policy, mu, target = np.random.default_rng(3).dirichlet(np.ones(4), 3)
  pull = 0.3
  mixture = policy ** (1 - pull) * mu**pull
  log_sum = np.log(mixture.sum())
  mixture = np.log(mixture / mixture.sum())
  kls = divergences(np.log(target), np.stack([mixture, np.log(mu), np.log(policy)]))
  np.testing.assert_allclose(kls[0], pull * kls[1] + (1 - pull) * kls[2] + log_sum, atol=1e-15)
  assert pull * divergence(mixture, np.log(mu)) <= -log_sum
