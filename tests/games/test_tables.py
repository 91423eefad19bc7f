"""Games from counts, probabilities and payoffs, and refused numbers."""

import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.games import tables
from nlhf_jax.games.game import check_payoff

NAN = np.nan
NAMES = ('rock', 'paper', 'scissors')
P = np.array([[0.5, 0.25, 0.75], [0.75, 0.5, 0.125], [0.25, 0.875, 0.5]])
WINS = np.array([[0.0, 1, 6], [3, 0, 1], [2, 7, 0]])  # P = WINS / (WINS + WINS^T)


def test_counts_become_payoffs():
  table = tables.from_counts(WINS, names=NAMES)
  np.testing.assert_allclose(table.payoff, P - 0.5)
  assert table.names == NAMES
  assert table.notes == ('20 comparisons, 4 to 8 of a pair that met.',)
  check_payoff(table.payoff)


def test_ties_and_prior_count_for_both_sides():
  wins = np.array([[0.0, 3, 0], [1, 0, 0], [0, 0, 0]])
  ties = np.array([[0.0, 2, 0], [2, 0, 0], [0, 0, 0]])
  table = tables.from_counts(wins, ties, 0.5)
  won = (3 + 2 / 2 + 0.5) / (3 + 1 + 2 + 2 * 0.5)
  np.testing.assert_allclose(table.payoff[0], [0, won - 0.5, 0])
  assert table.notes == (
    '6 comparisons, 6 to 6 of a pair that met.',
    '2 of 3 pairs never met: 1/2.',
    '2 of the comparisons are ties, half a win for both.',
    '0.5 wins added to both sides of every pair.',
  )


def test_prior_decides_pairs_without_counts():
  wins = np.array([[0.0, 2], [0, 0]])
  for prior, expected in ((0.0, 0.5), (1.0, 0.25), (1e9, 0)):
    assert tables.from_counts(wins, prior=prior).payoff[0, 1] == pytest.approx(expected, abs=1e-8)


def test_counts_may_differ_between_prompts():
  table = tables.from_counts(np.stack([WINS, WINS.T]))
  np.testing.assert_allclose(table.payoff, np.stack([P, P.T]) - 0.5)
  assert table.notes == ('40 comparisons, 4 to 8 of a pair that met.',)


def test_missing_counts_are_zero():
  wins = np.array([[NAN, NAN, 1], [NAN, NAN, 0], [1, 2, NAN]])
  np.testing.assert_array_equal(
    tables.from_counts(wins).payoff, [[0, 0, 0], [0, 0, -0.5], [0, 0.5, 0]]
  )


def test_preferences_become_payoffs():
  table = tables.from_preferences(P)
  np.testing.assert_array_equal(table.payoff, P - 0.5)
  assert table.names == ('1', '2', '3')
  assert table.notes == ()


def test_missing_preferences_are_one_half():
  given = np.array([[NAN, 0.25, NAN], [NAN, 0.5, NAN], [NAN, NAN, NAN]])
  table = tables.from_preferences(given)
  np.testing.assert_array_equal(table.payoff, [[0, -0.25, 0], [0.25, 0, 0], [0, 0, 0]])
  assert table.notes == (
    '2 of 3 pairs are missing: 1/2.',
    '1 of 3 pairs have one of their two entries, which gave the other.',
  )


def test_noise_within_the_tolerance_is_shared():
  printed = P.round(2)
  printed[1, 2] = 0.14
  with pytest.raises(UserError, match=r'off by 0\.02'):
    tables.from_preferences(printed)
  table = tables.from_preferences(printed, 0.05)
  assert table.payoff[1, 2] == pytest.approx((0.14 + 1 - 0.88) / 2 - 0.5)
  np.testing.assert_array_equal(table.payoff, -table.payoff.T)
  assert table.notes == ('Noise of at most 0.02 removed by (M - M^T) / 2.',)


def test_three_printed_decimals_need_a_tolerance():
  printed = np.array([[0.5, 0.123], [0.878, 0.5]])
  with pytest.raises(UserError, match=r'off by 0\.001 with tolerance=1e-06'):
    tables.from_preferences(printed)
  assert tables.from_preferences(printed, 0.002).payoff[0, 1] == pytest.approx(-0.3775)


def test_payoffs_are_scaled_and_antisymmetrised():
  noisy = np.array([[1.0, 100, NAN], [-90, 0, NAN], [40, NAN, -1]])
  table = tables.from_payoffs(noisy, 10.0, 200.0)
  np.testing.assert_allclose(table.payoff, np.array([[0, 95, -40], [-95, 0, 0], [40, 0, 0]]) / 200)
  assert table.notes == (
    '1 of 3 pairs are missing: 0.',
    '1 of 3 pairs have one of their two entries, which gave the other.',
    'Noise of at most 10 removed by (M - M^T) / 2.',
    'Payoffs divided by 200.',
  )


def test_payoffs_above_one_half_get_a_note():
  table = tables.from_payoffs(np.array([[0.0, 2], [-2, 0]]))
  assert table.notes == ('Payoffs reach 2, more than the 1/2 that a sure win is worth.',)


@pytest.mark.parametrize('seed', range(3))
def test_every_rule_gives_payoffs_of_a_game(seed):
  """Exactly antisymmetric ones; 1 less every probability is the same game for the other side."""
  random = np.random.default_rng(seed)
  payoff = random.uniform(-0.5, 0.5, (2, 5, 5))
  payoff = (payoff - payoff.swapaxes(1, 2)) / 2
  counts = random.integers(0, 9, (2, 5, 5)) * (1 - np.eye(5))
  for given, table in (
    (payoff, tables.from_payoffs(payoff)),
    (payoff, tables.from_preferences(payoff + 0.5)),
    (-payoff, tables.from_preferences(0.5 - payoff)),
    (tables.from_counts(counts).payoff, tables.from_counts(10 * counts)),
  ):
    np.testing.assert_allclose(table.payoff, given, atol=1e-15)
    np.testing.assert_array_equal(table.payoff, -table.payoff.swapaxes(1, 2))


def changed(matrix, *changes):
  matrix = np.array(matrix, float)
  for index, value in changes:
    matrix[index] = value
  return matrix


BAD_NUMBERS = {
  "row 2 ('paper'), column 3 ('scissors'): -1 is no count of wins; write a finite": lambda: (
    tables.from_counts(changed(WINS, ((1, 2), -1)), names=NAMES)
  ),
  'row 1, column 2: inf is no count of wins': lambda: tables.from_counts(
    changed(WINS, ((0, 1), np.inf))
  ),
  'row 3, column 1: nan is no count of wins': lambda: tables.from_counts(
    changed(WINS, ((2, 0), NAN))
  ),
  'prompt 2, row 1, column 1: 4 is a count of wins of an action against itself': lambda: (
    tables.from_counts(changed([WINS, WINS], ((1, 0, 0), 4)))
  ),
  'row 1, column 2: -2 is no count of ties': lambda: tables.from_counts(
    WINS, changed(WINS * 0, ((0, 1), -2))
  ),
  'row 1, column 2: 2 is not the count of ties of the mirror entry; write all': lambda: (
    tables.from_counts(WINS, changed(WINS * 0, ((0, 1), 2)))
  ),
  'ties of shape (2, 2) must be of the shape of wins, (3, 3)': lambda: tables.from_counts(
    WINS, np.zeros((2, 2))
  ),
  'prior=-1.0 must be at least 0': lambda: tables.from_counts(WINS, prior=-1.0),
  'there are no comparisons': lambda: tables.from_counts(WINS * 0),
  '1.5 is no probability in [0, 1]; correct it, or call the numbers counts if they are that '
  '(entries=counts).': lambda: tables.from_preferences(changed(P, ((0, 1), 1.5))),
  '-0.25 is no probability in [0, 1]; correct it, or call the numbers payoffs': lambda: (
    tables.from_preferences(P - 0.5)
  ),
  'inf is no probability': lambda: tables.from_preferences(changed(P, ((0, 1), np.inf))),
  "row 1 ('rock'), column 2 ('paper'): 0.3 and its mirror entry, 0.75, add up to 1.05 instead of "
  '1, which is off by 0.05 with tolerance=0.01; correct them, or raise the tolerance': lambda: (
    tables.from_preferences(changed(P, ((0, 1), 0.3), ((0, 2), 0.77)), 0.01, NAMES)
  ),
  'row 2, column 2: 0 is of an action against itself; write 0.5 there or leave it empty': lambda: (
    tables.from_preferences(changed(P, ((1, 1), 0)))
  ),
  'tolerance=-1.0 must be at least 0': lambda: tables.from_preferences(P, -1.0),
  'inf is not finite': lambda: tables.from_payoffs(changed(P, ((0, 1), np.inf))),
  'scale=0.0 must be above 0': lambda: tables.from_payoffs(P - 0.5, scale=0.0),
  'or call the numbers probabilities if they are that (entries=probabilities)': lambda: (
    tables.from_payoffs(P)
  ),
  'or call the numbers counts if they are that (entries=counts)': lambda: tables.from_payoffs(WINS),
  'must be square, [K, K], or [X, K, K] for X prompts; these are of the shape [2, 3]': lambda: (
    tables.from_payoffs(np.zeros((2, 3)))
  ),
  'these are of the shape [3]': lambda: tables.from_counts(np.zeros(3)),
  'these are of the shape [0, 3, 3]': lambda: tables.from_preferences(np.zeros((0, 3, 3))),
  'there is one action': lambda: tables.from_payoffs(np.zeros((1, 1))),
  'there are 2 names for 3 actions': lambda: tables.from_preferences(P, names=('a', 'b')),
  "actions 1 and 3 are both named 'a'": lambda: tables.from_preferences(P, names=('a', 'b', 'a')),
  "the name of action 2, 'b\\n', has control characters": lambda: tables.from_preferences(
    P, names=('a', 'b\n', 'c')
  ),
  'action 2 has an empty name': lambda: tables.from_preferences(P, names=('a', '', 'b')),
}


@pytest.mark.parametrize('words', BAD_NUMBERS)
def test_bad_numbers_are_refused(words):
  with pytest.raises(UserError) as error:
    BAD_NUMBERS[words]()
  assert words in str(error.value)
  assert str(error.value).endswith('.')
