"""Best of n, choices among k + 1, payoff maps and the gate, against numbers known apart."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.games import best_of_n, choice, choice_game, exact, payoff_maps
from nlhf_jax.games.choice_game import choose_by_rankings, choose_by_rewards, make_rankings
from nlhf_jax.games.game import kl, make_game

FOUR = np.array(
  [[0.5, 0.1, 0.8, 0.7], [0.9, 0.5, 0.1, 0.6], [0.2, 0.9, 0.5, 0.8], [0.3, 0.4, 0.2, 0.5]]
)
PAYOFF, MU = FOUR - 0.5, np.array([0.4, 0.3, 0.2, 0.1])
CYCLE = np.array([[0.5, 0.1, 0.8], [0.9, 0.5, 0.1], [0.2, 0.9, 0.5]])
CYCLE_MU = np.array([0.2, 0.5, 0.3])

# Rule and n -> the policy, its win rate over mu, and its KL.
POLICIES = {
  ('win_rate', 2): ((0.4, 0.39, 0.2, 0.01), 0.5234, 0.0792962122),
  ('win_rate', 4): ((0.2896, 0.4623, 0.248, 0.0001), 0.537446, 0.1590396136),
  ('win_rate', 8): (
    (0.17079872, 0.57674271, 0.25245856, 0.00000001),
    0.5526486502,
    0.2904258493,
  ),
  ('knockout', 2): ((0.368, 0.354, 0.212, 0.066), 0.51228, 0.0128366684),
  ('knockout', 4): ((0.3203072, 0.402852, 0.233624, 0.0432168), 0.523106256, 0.0476361088),
  ('knockout', 8): (
    (0.2675140135, 0.4342703953, 0.270075736, 0.0281398552),
    0.5317022717,
    0.0984570026,
  ),
  ('score', 2): ((0.24, 0.51, 0.24, 0.01), 0.5418, 0.1687535810),
  ('score', 4): ((0.0624, 0.7599, 0.1776, 0.0001), 0.571206, 0.5685347355),
  ('score', 8): (
    (0.00390624, 0.94235199, 0.05374176, 0.00000001),
    0.5862676806,
    0.9899074761,
  ),
}


def divergence(pi, reference):
  with np.errstate(divide='ignore'):
    return float(kl(jnp.log(jnp.asarray(pi)), jnp.log(jnp.asarray(reference))))


@pytest.mark.parametrize(('rule', 'n'), POLICIES)
def test_policies_win_rates_and_kl(rule, n, float64):
  expected, win_rate, distance = POLICIES[rule, n]
  found = best_of_n.best_of_n(rule, PAYOFF, MU, n)
  np.testing.assert_allclose(found, expected, rtol=0, atol=6e-11)
  np.testing.assert_allclose(found @ FOUR @ MU, win_rate, rtol=0, atol=6e-11)
  np.testing.assert_allclose(divergence(found, MU), distance, rtol=0, atol=6e-11)


def test_bounds():
  found = [best_of_n.kl_bound(n) for n in (2, 4, 8)]
  np.testing.assert_allclose(found, (0.1931471806, 0.6362943611, 1.2044415417), atol=6e-11)
  assert best_of_n.win_rate_bound(4) == 0.8


@pytest.mark.parametrize(
  ('actions', 'expected'),
  [(4, 0.5903101627), (16, 0.6333699962), (64, 0.6361112837), (1024, 0.6362936458)],
)
def test_kl_tends_to_its_bound_as_atoms_vanish(actions, expected, float64):
  uniform = np.full(actions, 1 / actions)
  found = divergence(best_of_n.by_score(np.arange(actions, dtype=float), uniform, 4), uniform)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
  assert found < best_of_n.kl_bound(4)


def test_all_samples_are_listed():
  found = np.zeros(4)
  for sample in itertools.product(range(4), repeat=4):
    gains = PAYOFF[np.ix_(sample, sample)].mean(axis=1)
    best = [
      action for action, gain in zip(sample, gains, strict=True) if gain > gains.max() - 1e-12
    ]
    for action in best:
      found[action] += np.prod(MU[list(sample)]) / len(best)
  np.testing.assert_allclose(best_of_n.by_win_rate(PAYOFF, MU, 4), found, rtol=0, atol=1e-15)


@pytest.mark.parametrize('seed', range(6))
def test_bounds_hold_for_all_rules(seed, float64):
  random = np.random.default_rng(seed)
  upper = np.triu(random.random((5, 5)) - 0.5, 1)
  reference = random.dirichlet(np.ones(5))
  for rule, n in itertools.product(best_of_n.RULES, (1, 2, 4)):
    pi = best_of_n.best_of_n(rule, upper - upper.T, reference, n)
    np.testing.assert_allclose(pi.sum(), 1, rtol=0, atol=1e-12)
    assert divergence(pi, reference) <= best_of_n.kl_bound(n) + 1e-12
    assert 0.5 + pi @ (upper - upper.T) @ reference <= best_of_n.win_rate_bound(n)
    assert n > 1 or np.allclose(pi, reference)


def test_equal_scores_share_as_in_the_reference():
  found = best_of_n.by_score(np.array([1.0, 0.0, 1.0, 0.0]), MU, 3)
  np.testing.assert_allclose(
    found,
    [*(1 - 0.4**3) * MU[[0]] / 0.6, 0.4**2 * 0.3, *(1 - 0.4**3) * MU[[2]] / 0.6, 0.4**2 * 0.1],
  )
  # The win rates over the uniform policy are equal, and differ by rounding.
  cycle, uniform = np.array([[0.5, 0.7, 0.3], [0.3, 0.5, 0.7], [0.7, 0.3, 0.5]]), np.full(3, 1 / 3)
  np.testing.assert_allclose(best_of_n.best_of_n('score', cycle - 0.5, uniform, 8), uniform)
  zero = best_of_n.by_score(np.array([2.0, 1.0]), np.array([0.0, 1.0]), 4)
  np.testing.assert_array_equal(zero, [0, 1])


def test_impossible_numbers_are_refused():
  with pytest.raises(UserError, match='power of two'):
    best_of_n.by_knockout(PAYOFF, MU, 6)
  with pytest.raises(UserError, match='314,457,495 samples of 8 out of 40'):
    best_of_n.by_win_rate(np.zeros((40, 40)), np.full(40, 1 / 40), 8)


# --- The best of k against one ---

T1 = make_rankings([[0, 1, 2], [1, 0, 2]], [0.6, 0.4])
T2 = make_rankings([[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1]], [0.45, 0.35, 0.2])
SHARES = {1: 1, 2: 0.8, 3: 0.6781746195, 4: 0.6388969195, 8: 0.6041455770}
EQUILIBRIA = {
  1: (0.6, 0.1, 0.3, 0),
  2: (0.5785863130, 0.2049128046, 0.2165008824, 0),
  3: (0.5583812209, 0.2662345369, 0.1753842422, 0),
  4: (0.5421633058, 0.3011717115, 0.1566649827, 0),
  8: (0.4867726496, 0.3431594795, 0.1700678709, 0),
}


@pytest.mark.parametrize('k', EQUILIBRIA)
def test_equilibria_of_the_best_of_k(k):
  two, four = (choice_game.choice_equilibrium(users, k) for users in (T1, T2))
  np.testing.assert_allclose(two, (SHARES[k], 1 - SHARES[k], 0), rtol=0, atol=6e-11)
  np.testing.assert_allclose(four, EQUILIBRIA[k], rtol=0, atol=6e-11)
  assert choice_game.choice_gap(choose_by_rankings(T2), four, k) < 1e-9


@pytest.mark.parametrize(
  ('users', 'k', 'expected'),
  [(T1, 1, 0.5), (T2, 1, 0.5), (T1, 2, 0.6), (T2, 2, 0.6276666667), (T1, 4, 0.6), (T2, 4, 0.70631)],
)
def test_samples_of_the_lottery_fall_short(users, k, expected):
  lottery = exact.maximal_lottery(users.payoff)
  worst = 1 - choose_by_rankings(users)(lottery, k).max()
  np.testing.assert_allclose(worst, expected, rtol=0, atol=6e-11)
  assert worst <= k / (k + 1) + 1e-12


@pytest.mark.parametrize(
  ('k', 'expected'),
  [
    (1, (0.4335861277, 0.3244225791, 0.1864037748, 0.0555875184)),
    (2, (0.4119537815, 0.3203122073, 0.1997476010, 0.0679864102)),
    (4, (0.3873325428, 0.3180160113, 0.2145360329, 0.0801154130)),
  ],
)
def test_regularised_equilibria_of_the_best_of_k(k, expected):
  chances = choose_by_rankings(T2)
  found = choice_game.regularised_choice_equilibrium(chances, k, np.full(4, 0.25), 0.1)
  np.testing.assert_allclose(found, expected, rtol=0, atol=6e-11)


@pytest.mark.parametrize(
  ('k', 'expected'),
  [
    (1, (0.8917991651, 0.0898028260, 0.0183980089)),
    (2, (0.8315301993, 0.1246287361, 0.0438410647)),
    (4, (0.7213987890, 0.1828576030, 0.0957436079)),
  ],
)
def test_equilibria_of_choices_by_rewards(k, expected):
  chances = choose_by_rewards(np.array([1.0, 0.0, -1.0]))
  found = choice_game.regularised_choice_equilibrium(chances, k, np.full(3, 1 / 3), 0.1)
  np.testing.assert_allclose(found, expected, rtol=0, atol=6e-11)


def test_chances_are_those_of_all_samples():
  pi, k = MU, 2
  chances = choose_by_rankings(T2)(pi, k)
  expected = (0.3653333333, 0.356, 0.3093333333, 0.1853333333)
  np.testing.assert_allclose(chances, expected, rtol=0, atol=6e-11)
  force = pi * (chances - pi @ chances)
  np.testing.assert_allclose(force, (0.0128, 0.0068, -0.0048, -0.0148), rtol=0, atol=6e-11)
  np.testing.assert_allclose(pi @ chances, 1 / (k + 1), rtol=0, atol=1e-15)
  places = np.argsort(T2.orders, axis=1)
  for action, samples in itertools.product(range(4), itertools.product(range(4), repeat=k)):
    shown = np.array([action, *samples])
    for place, share in zip(places, T2.shares, strict=True):
      best = shown[place[shown].argmin()]
      if best == action:
        chances[action] -= share * np.prod(pi[list(samples)]) / (shown == action).sum()
  np.testing.assert_allclose(chances, 0, atol=1e-15)


def test_pairwise_preferences_are_no_choices():
  with pytest.raises(UserError, match='preferences between pairs do not determine'):
    make_rankings(FOUR, np.full(4, 0.25))
  with pytest.raises(UserError, match='sum to 1'):
    make_rankings([[0, 1]], [0.9])


# --- Payoff maps and the gate ---

BORDA = {
  'clear': np.array([[0.5, 0.6, 0.6], [0.4, 0.5, 0.95], [0.4, 0.05, 0.5]]),
  'close': np.array([[0.5, 0.51, 0.51], [0.49, 0.5, 0.99], [0.49, 0.01, 0.5]]),
}
MAPPED = {
  ('clear', 'identity'): (0.6355817910, 0.3052071275, 0.0592110815),
  ('clear', 'log_odds'): (0.9693452953, 0.0218103740, 0.0088443307),
  ('close', 'identity'): (0.4634275063, 0.5004706567, 0.0361018370),
  ('close', 'log_odds'): (0.5987004312, 0.4012995648, 4e-9),
}


def nash(payoff, tau, reference=None):
  return np.asarray(exact.equilibrium(make_game(payoff, reference, tau), 1e-24).policy)


@pytest.mark.parametrize(('name', 'psi'), MAPPED)
def test_equilibria_of_mapped_payoffs(name, psi, float64):
  payoff = np.asarray(payoff_maps.map_odd_part(psi, BORDA[name] - 0.5))
  np.testing.assert_allclose(nash(payoff, 0.1), MAPPED[name, psi], rtol=0, atol=1e-10)
  assert choice.condorcet_winner(payoff) == 0
  assert choice.borda_scores(BORDA[name] - 0.5).argmax() == 1
  np.testing.assert_allclose(exact.maximal_lottery(payoff), [1, 0, 0], atol=1e-9)


def test_maps_of_close_and_cyclic_games(float64):
  close = BORDA['close'] - 0.5
  expected = (0.6222289355, 0.3777349549, 0.0000361095)
  np.testing.assert_allclose(nash(close, 0.02), expected, rtol=0, atol=6e-11)
  for psi, lottery in (
    ('identity', (4 / 11, 3 / 11, 4 / 11)),
    ('log_odds', (0.3800937667, 0.2398124666, 0.3800937667)),
    ('sign', (1 / 3, 1 / 3, 1 / 3)),
  ):
    payoff = np.asarray(payoff_maps.map_odd_part(psi, CYCLE - 0.5))
    np.testing.assert_allclose(exact.maximal_lottery(payoff), lottery, rtol=0, atol=6e-11)
  for name in BORDA:
    payoff = np.asarray(payoff_maps.map_odd_part('sign', BORDA[name] - 0.5))
    np.testing.assert_allclose(nash(payoff, 0.1)[0], 0.9999092084, rtol=0, atol=6e-11)


def test_signs_have_a_dead_band():
  found = payoff_maps.map_odd_part('sign', jnp.array([0.2, 1e-9, 0.0, -1e-9, -0.2]))
  np.testing.assert_array_equal(found, [1, 0, 0, 0, -1])


def test_the_gate_moves_the_lottery(float64):
  similarity = np.array([[1, 0.5, 0], [0.5, 1, 0.2], [0, 0.2, 1]])
  payoff = payoff_maps.gate(CYCLE - 0.5, similarity)
  np.testing.assert_allclose([payoff[0, 1], payoff[0, 2], payoff[1, 2]], [-0.2, 0.3, -0.32])
  lottery = (0.3902439024, 0.3658536585, 0.2439024390)
  np.testing.assert_allclose(exact.maximal_lottery(payoff), lottery, rtol=0, atol=6e-11)
  regularised = (0.3193781093, 0.3283583786, 0.3522635121)
  np.testing.assert_allclose(nash(payoff, 0.1, CYCLE_MU), regularised, rtol=0, atol=6e-11)


def test_no_samples_are_refused():
  with pytest.raises(UserError, match='k=0 samples cannot be compared with one'):
    choice_game.choice_equilibrium(T1, 0)
