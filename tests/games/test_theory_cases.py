"""The exact cases T1 to T26 of the theory of the regularised game, one function each."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from nlhf_jax.games import asymmetric, choice, exact, matrices, rlhf, solvers, spectrum
from nlhf_jax.games.game import Game, log_best_response, make_game, value
from tests.games.solving import at, divergence, gap, gaps, logs, nash, nashes, path

pytestmark = pytest.mark.usefixtures('float64')

reply = jax.jit(log_best_response)
worth = jax.jit(value)
UNIFORM = np.full(3, 1 / 3)


def close(actual, expected, atol=1e-14):
  np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def policies(seed, count, actions):
  return np.random.default_rng(seed).dirichlet(np.ones(actions), count)


def random_games(seed, count, actions, tau):
  return make_game(matrices.random(actions, seed, (count,)), policies(seed, count, actions), tau)


def equilibrium_at(payoff, reference=None, tau=1.0):
  return np.exp(nash(make_game(payoff, reference, tau)))


def uniform_whatever_tau(payoff):
  start = logs(policies(0, 1, len(payoff))[0])
  for tau in (0.05, 0.3, 2.0):
    log_pi = path(exact.newton, make_game(payoff, None, tau), np.array([40]), start).last[0]
    close(np.exp(log_pi), 1 / len(payoff))


def t1_two_actions():
  log_pi = nash(make_game([[0, 0.37], [-0.37, 0]], [0.2, 0.8], 0.15))
  close(log_pi[0] - log_pi[1], 1.0803723055467762)


def t2_rock_paper_scissors():
  payoff = matrices.rock_paper_scissors(0.3, 0.3, 0.3)
  uniform_whatever_tau(payoff)
  pure = logs([1, 0, 0])
  close(gap(make_game(payoff, None, 0.2), pure), 0.3482622593314314)
  close(0.2 * np.log(1 + 2 * np.cosh(0.3 / 0.2)), 0.3482622593314314)
  close(gap(make_game(payoff), pure), 0.3)


def t3_leaning_to_one_action():
  game = make_game(matrices.rock_paper_scissors(0.3, 0.3, 0.3))
  for theta in (0, 0.1, 0.2, 1 / 3):
    lean = np.array([2 * theta, -theta, -theta])
    close(gap(game, logs(UNIFORM + lean)), 3 * 0.3 * theta)


def t4_weighted_rock_paper_scissors():
  for edges in ((2.0, 3.0, 5.0), (0.1, 0.2, 0.05)):
    game = make_game(matrices.rock_paper_scissors(*edges))
    close(gap(game, logs(np.divide(edges, sum(edges)))), 0)
  close(exact.maximal_lottery(matrices.rock_paper_scissors(2.0, 3.0, 5.0)), [0.2, 0.3, 0.5])


def t5_circulant_games():
  angles = 2 * np.pi * np.arange(7) / 7
  seven = matrices.disc(np.stack([np.cos(angles), np.sin(angles)], axis=1))
  close(seven, np.sin(angles - angles[:, None]))
  uniform_whatever_tau(seven)
  uniform_whatever_tau(matrices.strict_cycle(5))


def t6_additive_rewards():
  rewards, mu = np.array([0.3, -1.0, 2.0, 0.7]), policies(6, 1, 4)[0]
  payoff = matrices.additive(rewards)
  close(special.logit(matrices.bradley_terry(rewards) + 0.5), payoff)
  for tau in (0.2, 1.0):
    close(equilibrium_at(payoff, mu, tau), special.softmax(np.log(mu) + rewards / tau))


def t7_manufactured_reference():
  for seed in range(5):
    payoff, policy = matrices.random(6, seed), policies(seed, 1, 6)[0]
    mu = matrices.with_regularised_equilibrium(payoff, policy, 0.1)
    close(gap(make_game(payoff, mu, 0.1), np.log(policy)), 0, 1e-28)
    close(equilibrium_at(payoff, mu, 0.1), policy)


def t8_prescribed_kernel():
  for seed in range(5):
    policy = policies(seed, 1, 5)[0]
    payoff = matrices.with_equilibrium(matrices.random(5, seed), policy)
    close(payoff @ policy, 0)
    close(gap(make_game(payoff), np.log(policy)), 0)
    close(exact.maximal_lottery(payoff), policy, 1e-12)


def t9_pfaffians():
  def pfaffian(a):
    return a[0, 1] * a[2, 3] - a[0, 2] * a[1, 3] + a[0, 3] * a[1, 2]

  def kernel(payoff):
    without = [np.delete(np.delete(payoff, i, 0), i, 1) for i in range(5)]
    return np.array([(-1) ** i * pfaffian(minor) for i, minor in enumerate(without)])

  for seed in range(5):
    skew, policy = matrices.random(5, seed), policies(seed, 1, 5)[0]
    close(skew @ kernel(skew), 0)
    signed = kernel(matrices.with_equilibrium(skew, policy))
    close(signed / signed.sum(), policy, 1e-13)


def t10_condorcet_against_borda():
  payoff = np.array([[0.5, 0.6, 0.6], [0.4, 0.5, 0.95], [0.4, 0.05, 0.5]]) - 0.5
  close(exact.maximal_lottery(payoff), [1, 0, 0])
  assert choice.condorcet_winner(payoff) == 0
  assert choice.worst_defeats(payoff).argmin() == 0
  close(payoff.sum(axis=1), [0.2, 0.35, -0.55])
  assert choice.borda_scores(payoff).argmax() == 1
  reward = jax.jit(rlhf.bradley_terry_reward)(payoff, UNIFORM)
  # The last is printed as -.826792, which is not its rounding but its printed others' sum.
  close(reward - reward.mean(), [0.301783, 0.525009, -0.826793], 5e-7)


QUANTAL = [
  (0.05, (0.15174470137710888, 0.4679477468412734, 0.3803075517816177)),
  (0.1, (0.17347802593750755, 0.4863032404469186, 0.3402187336155739)),
  (0.2, (0.2236449195838222, 0.47798817364258134, 0.2983669067735965)),
  (0.5, (0.2981331943694249, 0.4138204545848483, 0.28804635104572673)),
]


def t11_published_quantal_responses():
  payoff = np.array([[0, -3, 3], [3, 0, -1], [-3, 1, 0]]) / 6
  for tau, published in QUANTAL:
    close(equilibrium_at(payoff, tau=tau), published, 1e-15)
  close(exact.maximal_lottery(payoff), [1 / 7, 3 / 7, 3 / 7])
  close(equilibrium_at(payoff, tau=1e-6), [1 / 7, 3 / 7, 3 / 7], 1e-5)


def t12_two_finger_morra():
  payoff = matrices.morra(2)  # 11, 12, 21, 22, as shown and guessed
  game = make_game(payoff)

  def free_gap(first):
    return gap(game, logs([0, first, 1 - first, 0]))

  for first in np.linspace(4 / 7, 3 / 5, 5):
    close(free_gap(first), 0)
  assert free_gap(4 / 7 - 1e-3) > 1e-5
  assert free_gap(3 / 5 + 1e-3) > 1e-5
  close(equilibrium_at(payoff, tau=1e-7), [0, 4 / 7, 3 / 7, 0], 1e-5)


def t13_three_finger_morra():
  payoff = 2 * matrices.morra(3)
  ranges = {2: (25 / 61, 16 / 37), 4: (15 / 47, 1 / 3), 6: (9 / 37, 16 / 61)}  # 13, 22, 31
  for action in range(9):
    for sign, edge in zip((1, -1), ranges.get(action, (0, 0)), strict=True):
      found = optimize.linprog(
        sign * np.eye(9)[action], payoff, np.zeros(9), np.ones((1, 9)), [1], method='highs'
      )
      close(sign * found.fun, edge, 1e-9)
  close(equilibrium_at(payoff, tau=1e-4)[[2, 4, 6]], [0.41110, 0.32775, 0.26109], 5e-6)
  close(equilibrium_at(payoff, tau=1e-7)[[2, 4, 6]], np.array([25, 20, 16]) / 61, 1e-5)


def t14_blotto():
  for soldiers, fields in ((3, 3), (5, 3), (5, 4)):
    payoff = matrices.blotto(soldiers, fields)
    assert (payoff @ exact.maximal_lottery(payoff)).max() < 1e-12
  balanced = [tuple(way) for way in matrices.placements(3, 3)].index((1, 1, 1))
  assert len(matrices.blotto(3, 3)) == 10
  assert (matrices.blotto(3, 3)[balanced] >= 0).all()


def t15_identities_of_the_gap():
  for seed in range(5):
    payoff = matrices.random(6, seed)
    policy, mu = policies(seed, 2, 6)
    game, tau = make_game(payoff, mu, 0.07), 0.07
    log_sum = special.logsumexp(np.log(mu) + payoff @ policy / tau)
    paid = special.rel_entr(policy, mu).sum()
    close(gap(game, np.log(policy)), tau * (log_sum + paid))
    close(gap(game, np.log(policy)), tau * divergence(np.log(policy), reply(game, np.log(policy))))
    log_nash = nash(game)
    lost = tau * special.rel_entr(policy, np.exp(log_nash)).sum()
    close(worth(game, log_nash, np.log(policy)), lost)


PAIRS = list(combinations(range(6), 2))
LEFT, RIGHT = np.array(PAIRS).T


def estimated(payoff, votes, seeds, seed):
  """Payoffs estimated from `votes` on every pair, [seeds, K, K]."""
  wins = np.random.default_rng(seed).binomial(votes, payoff[LEFT, RIGHT] + 0.5, (seeds, len(PAIRS)))
  found = np.zeros((seeds, 6, 6))
  found[:, LEFT, RIGHT] = wins / votes - 0.5
  return found - found.swapaxes(1, 2)


def plugged_in(game, votes, seeds, seed):
  """Errors of the estimate and the equilibria it leads to, [seeds, ...]."""
  found = estimated(np.asarray(game.payoff), votes, seeds, seed)
  batch = Game(found, *(np.broadcast_to(part, (seeds, *part.shape)) for part in game[1:]))
  return game.payoff - found, nashes(batch)


def t16_plug_in_identity():
  for tau in (0.5, 0.05):
    game = make_game(matrices.random(6, 16), policies(16, 1, 6)[0], tau)
    errors, log_found = plugged_in(game, 200, 400, 16)
    shift = np.einsum('sij,sj->si', errors, np.exp(log_found))
    measured = gaps(game, log_found)
    close(measured, tau * special.logsumexp(shift / tau, axis=1, b=np.exp(log_found)))
    assert (measured <= (shift**2).max(axis=1) / (2 * tau)).all()
    assert (measured <= shift.max(axis=1)).all()


def t17_statistical_constant():
  for tau in (0.5, 0.1, 0.02):
    game = make_game(matrices.random(6, 17), policies(17, 1, 6)[0], tau)
    chances, policy = np.asarray(game.payoff) + 0.5, np.exp(nash(game))
    noise = chances * (1 - chances) * (1 - np.eye(6))
    constant = len(PAIRS) / (2 * tau) * policy @ noise @ policy**2
    votes = round(1e5 / len(PAIRS))
    _, log_found = plugged_in(game, votes, 400, 17)
    scaled = votes * len(PAIRS) * np.asarray(gaps(game, log_found))
    error = scaled.std(ddof=1) / np.sqrt(len(scaled))
    assert abs(scaled.mean() - constant) < 3 * error
    assert error < 0.05 * constant


def t18_symmetries():
  payoff, mu, tau = matrices.random(5, 18), policies(18, 1, 5)[0], 0.05
  game = make_game(payoff, mu, tau)
  policy = np.exp(nash(game))
  other = np.log(policies(19, 1, 5)[0])

  close(equilibrium_at(3 * payoff, mu, 3 * tau), policy)
  close(gap(make_game(3 * payoff, mu, 3 * tau), other), 3 * gap(game, other))

  order = np.array([3, 0, 4, 1, 2])
  close(equilibrium_at(payoff[np.ix_(order, order)], mu[order], tau), policy[order])

  clones, share = np.array([0, 1, 2, 3, 4, 4]), np.array([1, 1, 1, 1, 0.3, 0.7])
  split = equilibrium_at(payoff[np.ix_(clones, clones)], mu[clones] * share, tau)
  close(split, policy[clones] * share)

  absorbed = payoff + tau * matrices.additive(np.log(mu))
  close(equilibrium_at(absorbed, None, tau), policy)


def t19_large_tau():
  payoff, mu = matrices.random(5, 19), policies(20, 1, 5)[0]
  errors = [
    abs(equilibrium_at(payoff, mu, tau) - mu * (1 + payoff @ mu / tau)).max() * tau**2
    for tau in (10.0, 100.0, 1000.0)
  ]
  close(np.divide(errors[1:], errors[:-1]), 1, 0.05)
  close(mu @ payoff @ mu, 0)


def t20_bound_on_the_unregularised_gap():
  for tau in (0.3, 0.02):
    games = random_games(20, 200, 5, tau)
    policy, mu = np.exp(nashes(games)), np.exp(games.log_reference)
    free = np.einsum('sij,sj->si', games.payoff, policy).max(axis=1)
    paid = special.rel_entr(policy, mu).sum(axis=1)
    assert (free <= tau * (-np.log(mu.min(axis=1)) - paid) + 1e-14).all()
    flat = games._replace(log_reference=np.full((200, 5), -np.log(5)))
    policy = np.exp(nashes(flat))
    assert np.einsum('sij,sj->si', games.payoff, policy).max() <= tau * np.log(5)


def t21_mixtures_of_nash_md_are_mmd():
  payoff, mu, size, tau = matrices.random(4, 21), policies(21, 1, 4)[0], 0.8, 0.2
  lower, times = tau / (1 + size * tau), np.arange(100)
  inner = path(solvers.nash_md, make_game(payoff, mu, lower), times, None, (size,)).last
  mixed = special.log_softmax((1 - size * lower) * inner + size * lower * np.log(mu), axis=1)
  outer = path(solvers.mmd, make_game(payoff, mu, tau), times, mixed[0], (size,)).last
  close(mixed, outer)


def t22_bias_of_constant_nash_md():
  payoff, mu, size, tau = matrices.random(4, 22), policies(22, 1, 4)[0], 1.5, 0.2
  game = make_game(payoff, mu, tau)
  inner = path(solvers.nash_md, game, np.array([5000]), None, (size,)).last[0]
  mixed = special.log_softmax((1 - size * tau) * inner + size * tau * np.log(mu))
  higher = nash(at(game, tau / (1 - size * tau)))
  close(mixed, higher)
  close(inner, reply(game, higher))


def t23_damped_best_responses():
  a = 0.3
  payoff = matrices.rock_paper_scissors(a, a, a)
  start = logs(UNIFORM + 1e-5 * np.array([2, -1, -1]))
  for tau, damping in ((0.1, 0.3), (0.1, 1.0), (0.2, 1.0), (0.3, 0.5), (0.05, 0.1), (0.05, 0.2)):
    game, sigma = make_game(payoff, None, tau), a / (np.sqrt(3) * tau)
    close(spectrum.sigma(game, jnp.log(UNIFORM)), sigma)
    factor = np.hypot(1 - damping, damping * sigma)
    last = path(solvers.best_response, game, np.arange(4), start, (damping,)).last
    apart = np.linalg.norm(np.exp(last) - UNIFORM, axis=1)
    close(apart[1:] / apart[:-1], factor, 1e-4)
    assert (damping < 2 / (1 + sigma**2)) == (factor < 1)
  best = spectrum.stable_steps(a / (np.sqrt(3) * 0.1), 0.1).best_damping
  close(best, 1 / (1 + (a / (np.sqrt(3) * 0.1)) ** 2))


def t24_uncertainty():
  ridge, random = 0.5, np.random.default_rng(24)

  def meetings(p, q):
    return np.outer(p, q) + np.outer(q, p)

  def squared_gamma(p, q, counts):
    weight = np.outer(p, q) - np.outer(q, p)
    return (weight[LEFT, RIGHT] ** 2 / (ridge + counts[LEFT, RIGHT])).sum()

  def at_vertices(p, counts):
    return ((p**2)[:, None] / (ridge + counts) * (1 - np.eye(6))).sum(axis=0)

  for enhanced in (False, True):
    counts, total = np.zeros((6, 6)), 0.0
    for p, q in random.dirichlet(np.ones(6), (200, 2)):
      vertices = at_vertices(p, counts)
      close([squared_gamma(p, e, counts) for e in np.eye(6)], vertices)
      assert vertices.max() >= squared_gamma(p, q, counts)
      assert squared_gamma(p, p, counts) == 0
      other = np.eye(6)[vertices.argmax()] if enhanced else q
      total += min(1, squared_gamma(p, other, counts))
      counts += meetings(p, other)
    assert total <= 2 * np.log1p(counts[LEFT, RIGHT] / ridge).sum()


def t25_matching_pennies():
  even = jnp.log(jnp.array([0.5, 0.5]))
  payoff = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
  for tau in (0.05, 1.0, 20.0):
    game = asymmetric.AsymmetricGame(payoff, even, even, jnp.asarray(tau))
    found = asymmetric.equilibrium(game)
    close(np.exp(found.pair), 0.5)
    close(found.duality_gap, 0)
    left, right = np.exp(found.pair)
    close(left @ payoff @ right, 0)


def t26_prompts():
  chance = policies(26, 1, 8)[0]
  games = random_games(26, 8, 3, 0.1)
  policy, others = np.log(policies(27, 8, 3)), np.log(policies(28, 400, 3)).reshape(50, 8, 3)
  against = jax.jit(jax.vmap(jax.vmap(value), (None, 0, None)))
  best = jax.vmap(log_best_response)(games, policy)
  at_best = against(games, best[None], policy)[0] @ chance
  close(at_best, jax.vmap(gap)(games, policy) @ chance)
  assert (against(games, others, policy) @ chance <= at_best).all()


CASES = [
  ('T1', t1_two_actions),
  ('T2', t2_rock_paper_scissors),
  ('T3', t3_leaning_to_one_action),
  ('T4', t4_weighted_rock_paper_scissors),
  ('T5', t5_circulant_games),
  ('T6', t6_additive_rewards),
  ('T7', t7_manufactured_reference),
  ('T8', t8_prescribed_kernel),
  ('T9', t9_pfaffians),
  ('T10', t10_condorcet_against_borda),
  ('T11', t11_published_quantal_responses),
  ('T12', t12_two_finger_morra),
  ('T13', t13_three_finger_morra),
  ('T14', t14_blotto),
  ('T15', t15_identities_of_the_gap),
  ('T16', t16_plug_in_identity),
  ('T17', t17_statistical_constant),
  ('T18', t18_symmetries),
  ('T19', t19_large_tau),
  ('T20', t20_bound_on_the_unregularised_gap),
  ('T21', t21_mixtures_of_nash_md_are_mmd),
  ('T22', t22_bias_of_constant_nash_md),
  ('T23', t23_damped_best_responses),
  ('T24', t24_uncertainty),
  ('T25', t25_matching_pennies),
  ('T26', t26_prompts),
]


def test_every_theory_case_is_listed():
  assert [name for name, _ in CASES] == [f'T{number}' for number in range(1, 27)]


@pytest.mark.parametrize('case', [pytest.param(case, id=name) for name, case in CASES])
def test_theory_case_holds(case):
  case()
