"""Fixed points of further methods, against numbers that were computed apart to ten digits.

Games and data are those of `test_fixed_points`: a cycle and a random game of three actions, and
pairs with the probabilities `UNEVEN`.
"""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax, softmax

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.algorithm import Algorithm
from nlhf_jax.algorithms.selection import chain, gate_payoff, standardise, unchanged
from nlhf_jax.structs import Comparison, Responses, Scores
from tests.laws import exact, theory
from tests.laws.exact import natural
from tests.laws.test_fixed_points import GAMES, UNEVEN

pytestmark = pytest.mark.usefixtures('float64')

UNIFORM = np.full(3, 1 / 3)


class Rest(NamedTuple):
  """An algorithm, its optimizer, the policies at which it rests on both games, and its data."""

  algorithm: Algorithm
  optimizer: optax.GradientTransformation
  cycle: tuple[float, ...]
  random: tuple[float, ...]
  shares: np.ndarray | None = None
  steps: int = 4000


NASH = (0.2749172053, 0.2797225768, 0.4453602180), (0.4302581344, 0.3546523917, 0.2150894739)
RESTS = {
  'chi_po': Rest(
    catalogue.chi_po(0.5, 2.0),
    natural(0.3),
    (0.1481004571, 0.4498007660, 0.4020987769),
    (0.5911610818, 0.2346395739, 0.1741993442),
    UNEVEN,
  ),
  'chi_po, beta .1': Rest(
    catalogue.chi_po(0.1, 20.0),
    natural(0.3),
    (0.0174158122, 0.1903218904, 0.7922622974),
    (0.4249035171, 0.0427081753, 0.5323883076),
    UNEVEN,
    20000,
  ),
  'rpo_squared': Rest(
    catalogue.rpo_squared(0.5, 2.0),
    natural(0.1),
    (0.1501208753, 0.4461719918, 0.4037071329),
    (0.5817362318, 0.2365091415, 0.1817546267),
    UNEVEN,
  ),
  'rpo_backward': Rest(
    catalogue.rpo_backward(0.5, 2.0),
    natural(0.5),
    (0.1537687446, 0.4496821140, 0.3965491414),
    (0.5822276583, 0.2434244380, 0.1743479037),
    UNEVEN,
  ),
  'rpo_forward': Rest(
    catalogue.rpo_forward(0.5, 2.0),
    natural(0.5),
    (0.1480698557, 0.4467181248, 0.4052120195),
    (0.5779777022, 0.2406599084, 0.1813623893),
    UNEVEN,
  ),
  'rpo_forward, EXO': Rest(
    catalogue.rpo_forward(0.5, 2 * np.log(9)),
    natural(0.5),
    (0.0809846451, 0.3570090438, 0.5620063111),
    (0.4663468756, 0.1912754512, 0.3423776731),
    UNEVEN,
  ),
  'orpo': Rest(
    catalogue.orpo(1.0),
    natural(0.1),
    (0.2814773499, 0.3305585929, 0.3879640571),
    (0.3023702299, 0.2730262648, 0.4246035052),
    UNEVEN,
  ),
  'orpo, weight .1': Rest(
    catalogue.orpo(0.1),
    natural(0.1),
    (0.2845412374, 0.3497775929, 0.3656811697),
    (0.3059718412, 0.2938663532, 0.4001618056),
    UNEVEN,
  ),
  'cpo': Rest(
    catalogue.cpo(0.5, 1.0),
    natural(0.1),
    (0.2728442735, 0.3434810196, 0.3836747069),
    (0.3001387962, 0.2716841130, 0.4281770908),
    UNEVEN,
  ),
  'cpo, beta .1': Rest(
    catalogue.cpo(0.1, 1.0),
    natural(0.1),
    (0.2812731837, 0.3528852885, 0.3658415278),
    (0.3047745295, 0.2921338578, 0.4030916127),
    UNEVEN,
  ),
  'chi_self_play': Rest(
    catalogue.chi_self_play(0.1),
    natural(0.01),
    (0.2180210321, 0.3366458592, 0.4453331086),
    (0.4560307536, 0.3922447898, 0.1517244567),
  ),
  'omwu': Rest(
    catalogue.omwu(1.0, 1),
    natural(0.25),
    (4 / 11, 3 / 11, 4 / 11),
    (0.4945385878, 0.2366839186, 0.2687774936),
  ),
  'nash_md_group': Rest(catalogue.nash_md_group(0.0, 0.1, 2, 3), natural(0.3), *NASH),
  'self_play_group': Rest(catalogue.self_play_group(0.1, 4), natural(0.3), *NASH),
  'self_play_group, with itself': Rest(
    catalogue.self_play_group(0.1, 4)._replace(select=unchanged),
    natural(0.3),
    (0.2498391122, 0.2960161928, 0.4541446949),
    (0.4343150555, 0.3752203591, 0.1904645854),
  ),
}


def rest(algorithm, optimizer, steps=4000):
  find_fixed_point = exact.make_find_fixed_point(algorithm, optimizer, steps)
  return lambda *game: np.exp(find_fixed_point(*game)['policy'])


@pytest.mark.parametrize('name', RESTS)
def test_fixed_points_are_those_computed_apart(name):
  row = RESTS[name]
  find = rest(row.algorithm, row.optimizer, row.steps)
  for (preference, mu), expected in zip(GAMES.values(), (row.cycle, row.random), strict=True):
    np.testing.assert_allclose(find(preference, mu, row.shares), expected, rtol=0, atol=6e-11)


def test_rpo_has_one_fixed_point_for_differences_of_rewards():
  reward, eta, beta = np.array([0.3, -0.2, 0.1]), 2.0, 0.5
  preference = 0.5 + reward[:, None] - reward
  for make, rate in (
    (catalogue.rpo_squared, 0.1),
    (catalogue.rpo_backward, 0.5),
    (catalogue.rpo_forward, 0.5),
  ):
    found = rest(make(beta, eta), natural(rate))(preference, exact.CYCLE_MU, UNEVEN)
    closed = softmax(np.log(exact.CYCLE_MU) + eta * reward / beta)
    np.testing.assert_allclose(found, closed, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found, (0.4969359787, 0.1681324286, 0.3349315928), atol=6e-11)


def test_a_tight_bound_of_chi_po_moves_its_minimum():
  (preference, mu), unbounded = GAMES['random'], RESTS['chi_po'].random
  payoff = jnp.asarray(preference - 0.5).reshape(9, 1, 1)
  left, right = (places.reshape(9, 1, 1) for places in np.indices((3, 3)))
  sides = [Responses(places, np.ones((9, 1, 1), bool)) for places in (left, right)]

  def value(r_max, pi):
    tables = {'policy': jnp.log(jnp.asarray(pi)), 'reference': jnp.log(jnp.asarray(mu))}
    scores = {slot: Scores(table[left], table[right]) for slot, table in tables.items()}
    loss = catalogue.chi_po(0.5, r_max).loss(scores, Comparison(None, *sides, payoff))
    return float(UNEVEN.ravel() @ loss.ravel())

  lower = (0.2449850, 0.3917569, 0.3632581)
  np.testing.assert_allclose(value(2.0, unbounded), 0.6547922, rtol=0, atol=6e-8)
  np.testing.assert_allclose(value(0.5, unbounded), 0.6547922, rtol=0, atol=6e-8)
  np.testing.assert_allclose(value(0.5, lower), 0.6266008, rtol=0, atol=6e-8)


# --- No fixed point in the interior ---


def test_apo_zero_follows_the_known_path():
  path, _ = exact.make_run(catalogue.apo_zero(0.5), optax.sgd(1.0), 100)(*GAMES['cycle'], UNEVEN)
  expected = (0.0457080014, 0.1828090530, 0.7714829456)
  np.testing.assert_allclose(np.exp(path[-1]), expected, rtol=0, atol=6e-11)


@pytest.mark.parametrize(
  ('make', 'game', 'winner'),
  [
    (catalogue.apo_zero, 'cycle', 2),
    (catalogue.apo_zero, 'random', 2),
    (catalogue.apo_down, 'cycle', 1),
    (catalogue.apo_down, 'random', 0),
  ],
)
def test_apo_ends_at_one_response(make, game, winner):
  path, _ = exact.make_run(make(0.5), optax.sgd(10.0), 10000)(*GAMES[game], UNEVEN)
  assert np.exp(path[-1])[winner] > 0.95


# --- Groups of samples ---


@pytest.mark.parametrize(
  ('samples', 'expected'),
  [
    (2, (0.3025943336, 0.3241170751, 0.3732885912)),
    (4, (0.3435862308, 0.2729657372, 0.3834480319)),
  ],
)
def test_standardised_advantages_rest_at_another_game(samples, expected):
  algorithm = catalogue.standardised_self_play(0.1, samples)
  exactly = rest(algorithm._replace(select=standardise(1e-12)), natural(0.1))(*GAMES['cycle'])
  np.testing.assert_allclose(exactly, expected, rtol=0, atol=1e-9)
  found = rest(algorithm, natural(0.1))(*GAMES['cycle'])
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
  if samples == 2:
    signs = 0.5 + np.sign(exact.CYCLE - 0.5)
    nash = theory.regularised(0.1 * np.sqrt(2))(signs, exact.CYCLE_MU)
    np.testing.assert_allclose(exactly, nash, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
  ('k', 'expected'),
  [
    (1, (0.8917991651, 0.0898028260, 0.0183980089)),
    (2, (0.8315301993, 0.1246287361, 0.0438410647)),
    (4, (0.7213987890, 0.1828576030, 0.0957436079)),
  ],
)
def test_best_of_k_rests_at_the_equilibrium_of_choices(k, expected):
  reward = np.array([1.0, 0.0, -1.0])
  find = rest(catalogue.best_of_k(0.1, k), natural(0.3), 2000)
  found = find(0.5 + reward[:, None] - reward, UNIFORM)
  np.testing.assert_allclose(found, expected, rtol=0, atol=6e-11)


# --- Maps of the payoff ---

BORDA = {  # Both have a Condorcet winner, the first action, and another Borda winner.
  'clear': np.array([[0.5, 0.6, 0.6], [0.4, 0.5, 0.95], [0.4, 0.05, 0.5]]),
  'close': np.array([[0.5, 0.51, 0.51], [0.49, 0.5, 0.99], [0.49, 0.01, 0.5]]),
}
MAPPED = {
  ('clear', 'identity'): (0.6355817910, 0.3052071275, 0.0592110815),
  ('clear', 'log_odds'): (0.9693452953, 0.0218103740, 0.0088443307),
  ('clear', 'sign'): (0.9999092084, 0.0000453958, 0.0000453958),
  ('close', 'identity'): (0.4634275063, 0.5004706567, 0.0361018370),
  ('close', 'log_odds'): (0.5987004312, 0.4012995648, 4e-9),
  ('close', 'sign'): (0.9999092084, 0.0000453958, 0.0000453958),
}


@pytest.mark.parametrize('psi', ['identity', 'log_odds', 'sign'])
def test_maps_of_the_payoff_have_equilibria_of_their_own(psi):
  find = rest(catalogue.psi_self_play(0.1, psi), natural(0.1))
  for game, preference in BORDA.items():
    found = find(preference, UNIFORM)
    np.testing.assert_allclose(
      found, MAPPED[game, psi], rtol=0, atol=5e-8 if psi == 'sign' else 4e-9
    )


def test_the_odd_part_of_a_square_is_played():
  preference = np.full((4, 4), 0.55)
  preference[:3, :3] = [[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]]
  preference[3] = [0.45, 0.45, 0.45, 0.5]
  find = rest(catalogue.psi_self_play(0.02, 'square'), natural(0.5), 20000)
  expected = (0.3244556852, 0.3244556852, 0.3244556852, 0.0266329445)
  np.testing.assert_allclose(find(preference, np.full(4, 0.25)), expected, rtol=0, atol=6e-10)


# --- The semantic gate of S-SPPO ---

SIMILAR = np.array([[1, 0.5, 0], [0.5, 1, 0.2], [0, 0.2, 1]])


def alike(comparison):
  """How alike two actions of the cycle are."""
  return jnp.asarray(SIMILAR)[comparison.left.tokens, comparison.right.tokens.swapaxes(1, 2)]


def test_the_semantic_gate_rests_at_another_equilibrium():
  preference, mu = GAMES['cycle']
  gated = catalogue.self_play(0.1)._replace(select=gate_payoff(alike))
  found = rest(gated, natural(0.3))(preference, mu)
  expected = (0.3193781093, 0.3283583786, 0.3522635121)
  np.testing.assert_allclose(found, expected, rtol=0, atol=6e-11)


def test_a_gated_round_is_that_of_the_gated_game():
  preference, mu = GAMES['cycle']
  plain, gated = (make(2.0, 2, 10**9, 0.5) for make in (catalogue.sppo, catalogue.sppo_gated))
  by_table = gated._replace(select=chain(gate_payoff(alike), plain.select))
  find = rest(plain, natural(0.1), 3000)
  weaker = find(0.5 + (1 - SIMILAR) * (preference - 0.5), mu)
  found = rest(by_table, natural(0.1), 3000)(preference, mu)
  np.testing.assert_allclose(found, weaker, rtol=0, atol=1e-9)
  # Two actions of one token have no token in common.
  ungated = find(preference, mu)
  np.testing.assert_allclose(rest(gated, natural(0.1), 3000)(preference, mu), ungated, atol=1e-9)
  assert abs(found - ungated).max() > 0.01


# --- Nash rejection sampling ---


def expected_step(log_pi, preference, mu, responses, candidates):
  """The expected gradient of the logits at tau = .1, by listing all samples."""
  pi, payoff, tau = np.exp(log_pi), preference - 0.5, 0.1
  step = np.zeros(3)
  for left in itertools.product(range(3), repeat=responses):
    for right in itertools.product(range(3), repeat=candidates):
      table = payoff[np.ix_(left, right)]
      gains = table @ softmax(-table.mean(0) / tau) - tau * (log_pi - np.log(mu))[list(left)]
      chance = np.prod(pi[list(left)]) * np.prod(mu[list(right)]) / responses
      for action, gain in zip(left, gains, strict=True):
        step += chance * gain * (np.eye(3)[action] - pi)
  return step


@pytest.mark.parametrize(('responses', 'candidates'), [(1, 3), (2, 3)])
def test_nash_rejection_rests_where_its_estimate_balances(responses, candidates):
  algorithm = catalogue.nash_rejection(0.1, responses, candidates)
  find_fixed_point = exact.make_find_fixed_point(algorithm, natural(0.3), 2000)
  for preference, mu in GAMES.values():
    log_pi = log_softmax(find_fixed_point(preference, mu)['policy'])
    step = expected_step(log_pi, preference, mu, responses, candidates)
    np.testing.assert_allclose(step, 0, rtol=0, atol=1e-9)
    elsewhere = expected_step(np.log(mu), preference, mu, responses, candidates)
    assert abs(elsewhere).max() > 1e-3


def test_one_candidate_makes_nash_rejection_a_best_response():
  preference, mu = GAMES['cycle']
  found = rest(catalogue.nash_rejection(0.1, 1, 1), natural(0.3))(preference, mu)
  np.testing.assert_allclose(found, theory.reply(0.1)(preference, mu, None), rtol=0, atol=1e-9)


# --- One pair of responses of two and three tokens, computed apart ---


def pair_value(algorithm, payoff):
  """The loss of the pair: beta (rho(y) - rho(y')) is .15 at beta = .5."""
  policy = [-1.0, -2.0, 0.0], [-1.5, -0.5, -1.0]
  reference = [-1.2, -1.9, 0.0], [-1.0, -1.0, -0.8]
  scores = {
    slot: Scores(*(jnp.array([[side]]) for side in sides))
    for slot, sides in {'policy': policy, 'reference': reference}.items()
  }
  sides = [
    Responses(jnp.zeros((1, 1, 3), int), (jnp.arange(3) < length)[None, None]) for length in (2, 3)
  ]
  return algorithm.loss(scores, Comparison(None, *sides, jnp.full((1, 1, 1), payoff))).item()


ENTROPY = -sum(p * np.log(p) for p in (1 / (1 + np.exp(-0.6)), 1 / (1 + np.exp(0.6))))


@pytest.mark.parametrize(
  ('algorithm', 'payoff', 'expected'),
  [
    (catalogue.dpo(0.5), 0.5, 0.6209570478),
    (catalogue.rpo_forward(0.5, 2 * np.log(9)), 0.5, 0.4313884572),
    (catalogue.apo_zero(0.5), 0.5, -0.0374765840),
    (catalogue.apo_down(0.5), 0.5, -0.0249324488),
    (catalogue.cpo(0.5, 1.0), 0.5, 0.6931471806 + 3.0),
    (catalogue.orpo(1.0), 0.5, 1.1073281746 + 3.0),
    (catalogue.chi_po(0.5, 2.0), 0.5, 0.5572461095),
    # The mean over the label exceeds the square of x - t by a constant, 1 - t^2.
    (catalogue.rpo_squared(0.5, 2.0), 0.3, 0.2025 + 1 - 0.6**2),
    (catalogue.rpo_forward(0.5, 2.0), 0.3, 0.0246874723),
    # The logistic loss exceeds the KL by the entropy of the label.
    (catalogue.rpo_backward(0.5, 2.0), 0.3, 0.0240144351 + ENTROPY),
  ],
)
def test_losses_of_a_pair(algorithm, payoff, expected):
  np.testing.assert_allclose(pair_value(algorithm, payoff), expected, rtol=0, atol=6e-11)
