"""Measured preferences of people and bots, with equilibria from other programs."""

import csv
import json

import jax
import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.games import choice, exact, files, tables
from nlhf_jax.games.game import make_game

ARENA = 'chatbot_arena_2024-03-29'


@pytest.fixture(scope='session')
def folder(shared):
  return shared / 'data'


@pytest.fixture(scope='session')
def expected(folder):
  """The stored equilibria of linear programs, by prefix of their names."""
  known = json.loads((folder / 'games/reference_equilibria.json').read_text())

  def find(start):
    (found,) = (value for name, value in known.items() if name.startswith(start))
    return found

  return find


@pytest.fixture(scope='session')
def bots(folder):
  return files.read(folder / 'games/rrps_bots_43_raw.csv', 'payoffs', tolerance=36.0, scale=1000.0)


@pytest.fixture(scope='session')
def arena(folder):
  return files.read(folder / f'games/{ARENA}_win_fraction.csv')


@pytest.fixture(scope='session')
def battles(folder):
  """The number of votes on every pair, and the names."""
  with open(folder / f'games/{ARENA}_battle_count.csv') as file:
    (_, *names), *rows = csv.reader(file)
  return tuple(names), np.array([row[1:] for row in rows], float)


def counts(path, group):
  """Wins, [groups, K, K], and the names of the groups, from a list of pairs x and y."""
  with open(path) as file:
    rows = list(csv.DictReader(file))
  groups = list(dict.fromkeys(row[group] for row in rows))
  names = sorted({row[side] for row in rows for side in 'xy'})
  wins = np.zeros((len(groups), len(names), len(names)))
  for row in rows:
    which, i, j = groups.index(row[group]), names.index(row['x']), names.index(row['y'])
    wins[which, i, j], wins[which, j, i] = int(row['chose_x']), int(row['chose_y'])
  return groups, names, wins


@pytest.fixture(scope='session')
def gambles(folder):
  groups, names, wins = counts(folder / 'choice/tversky_1969_gambles.csv', 'subject')
  return groups, tables.from_counts(wins, names=names)


def check_equilibrium(names, payoff, known):
  """Checks support and probabilities, to 1e-9, of the maximal lottery."""
  pi = exact.maximal_lottery(payoff)
  assert {names[k] for k in np.flatnonzero(pi > 1e-9)} == set(known['nash'])
  np.testing.assert_allclose(pi, [known['nash'].get(name, 0) for name in names], atol=1e-9)
  assert (payoff @ pi).max() < 1e-9


def check_choice(names, payoff, known):
  assert choice.three_cycles(payoff) == known['three_cycles']
  winner = choice.condorcet_winner(payoff)
  assert (None if winner is None else names[winner]) == known['condorcet_winner']


def test_bots_have_the_expected_equilibrium(bots, expected):
  names, payoff, notes, _ = bots
  known = expected('rrps_bots_43')
  assert len(names) == known['n'] == 43
  assert len(known['nash']) == 5
  check_equilibrium(names, payoff, known)
  check_choice(names, payoff, known)
  assert choice.condorcet_winner(payoff) is None
  assert names[choice.borda_scores(payoff).argmax()] == 'greenberg'
  assert choice.hodge(payoff).share == pytest.approx(0.70, abs=0.005)
  assert notes == (
    'Noise of at most 35.2 removed by (M - M^T) / 2.',
    'Payoffs divided by 1000.',
    'Payoffs reach 1, more than the 1/2 that a sure win is worth.',
  )


def test_bots_table_needs_a_tolerance(folder):
  path = folder / 'games/rrps_bots_43_raw.csv'
  with pytest.raises(UserError) as error:
    files.read(path, 'payoffs')
  assert str(error.value).startswith(
    f"{path}: row 17 ('inocencio'), column 39 ('sweetrock'): -204.154 and its mirror entry, "
    '239.356, add up to 35.202 instead of 0, which is off by 35.2 with tolerance=1e-06'
  )
  files.read(path, 'payoffs', tolerance=35.21)
  with pytest.raises(UserError, match=r'entries=payoffs'):
    files.read(path)


def test_half_the_scale_is_a_sure_win(bots, folder):
  table = files.read(folder / 'games/rrps_bots_43_raw.csv', 'payoffs', tolerance=36.0, scale=2000.0)
  assert not any('sure win' in note for note in table.notes)
  np.testing.assert_array_equal(table.payoff, bots.payoff / 2)


def test_both_arena_equilibria_are_unbeaten(arena, expected):
  """The equilibrium is not unique; both equilibria are unbeaten."""
  names, payoff, notes, _ = arena
  known = expected('chatbot_arena_25')
  assert len(names) == known['n'] == 25
  assert not known['looks_unique']
  pi = np.array([known['nash'].get(name, 0) for name in names])
  for policy in (pi, exact.maximal_lottery(payoff)):
    assert policy.sum() == pytest.approx(1)
    assert abs((payoff @ policy).max()) < 1e-9
  check_choice(names, payoff, known)
  assert notes[0] == '62 of 300 pairs are missing: 1/2.'


def test_complete_arena_has_the_expected_equilibrium(arena, battles, expected):
  known = expected('chatbot_arena complete')
  chosen = [arena.names.index(name) for name in known['models']]
  names, payoff = known['models'], arena.payoff[np.ix_(chosen, chosen)]
  assert len(names) == known['n'] == 17
  check_equilibrium(names, payoff, known)
  check_choice(names, payoff, known)
  assert known['condorcet_winner'] == 'claude-3-opus-20240229'
  met = battles[1][np.ix_(chosen, chosen)]
  assert met[~np.eye(17, dtype=bool)].min() == known['min_battles'] == 8


def test_arena_votes_give_the_published_fractions(folder, arena, battles):
  """Votes give back the published fractions; a prior pulls pairs with few votes to 1/2 the most."""
  names, met = battles
  with open(folder / f'games/{ARENA}_win_fraction.csv') as file:
    fractions = [[float(cell or 'nan') for cell in row[1:]] for row in list(csv.reader(file))[1:]]
  wins = met * np.array(fractions)
  np.testing.assert_allclose(wins, wins.round(), atol=1e-6)  # ties had been left out
  table = tables.from_counts(wins, names=names)
  assert table.names == arena.names
  np.testing.assert_allclose(table.payoff, arena.payoff, atol=1e-10)
  assert table.notes == (
    '154279 comparisons, 8 to 3891 of a pair that met.',
    '62 of 300 pairs never met: 1/2.',
  )
  pulled = tables.from_counts(wins, prior=4.0).payoff
  np.testing.assert_allclose(pulled, arena.payoff * met / (met + 8), atol=1e-10)


def test_battle_counts_are_not_wins(folder):
  path = folder / f'games/{ARENA}_battle_count.csv'
  assert not files.read(path, 'counts').payoff.any()
  with pytest.raises(UserError, match='entries=counts'):
    files.read(path, 'payoffs')
  with pytest.raises(UserError, match=r"column 2 \('gpt-4-1106-preview'\): 1585 is no probability"):
    files.read(path)


@pytest.mark.parametrize('subject', range(1, 9))
def test_tverskys_gambles_have_the_expected_equilibria(gambles, expected, subject):
  groups, table = gambles
  known = expected('tversky')[str(subject)]
  payoff = table.payoff[groups.index(str(subject))]
  check_equilibrium(table.names, payoff, known)
  check_choice(table.names, payoff, known)


def test_gambles_were_offered_twenty_times(gambles):
  assert gambles[1].notes == ('1600 comparisons, 20 to 20 of a pair that met.',)


def test_a_list_of_pairs_pools_the_subjects(folder, gambles, tmp_path):
  text = (folder / 'choice/tversky_1969_gambles.csv').read_text()
  path = tmp_path / 'pairs.csv'
  path.write_text(text.replace('x,y,chose_x,chose_y', 'left,right,left_wins,right_wins', 1))
  table = files.read(path)
  assert table.names == gambles[1].names
  np.testing.assert_allclose(table.payoff, gambles[1].payoff.mean(axis=0), atol=1e-12)
  assert table.notes[0] == 'Columns not used: subject.'


def test_domains_have_the_expected_cycles(folder, expected):
  domains, names, wins = counts(folder / 'choice/mms_2019_population.csv', 'domain')
  payoff = tables.from_counts(wins, names=names).payoff
  cycles = {domain: choice.three_cycles(one) for domain, one in zip(domains, payoff, strict=True)}
  assert len(cycles) == 32
  assert {domain: count for domain, count in cycles.items() if count} == expected('mms_2019')


@pytest.mark.parametrize('name', ['celebrities', 'heaviness_1', 'heaviness_2'])
def test_counts_of_choices_are_read(folder, name):
  table = files.read(folder / f'choice/eba_{name}.csv', 'counts')
  np.testing.assert_array_equal(table.payoff, -table.payoff.T)
  assert abs(table.payoff).max() < 0.5
  if name == 'celebrities':
    # 234 students chose between Lyndon Johnson and Harold Wilson: 159 to 75.
    assert table.payoff[0, 1] == pytest.approx(159 / 234 - 0.5)
  else:
    assert table.names[choice.condorcet_winner(table.payoff)] == '110g'
    assert choice.three_cycles(table.payoff) == 0


def test_low_tau_approaches_the_linear_program(gambles):
  """In proportion to tau, since the unregularised equilibrium is unique."""
  payoffs = gambles[1].payoff
  lottery = np.array([exact.maximal_lottery(payoff) for payoff in payoffs])
  with jax.enable_x64(True):
    solve = jax.jit(jax.vmap(exact.equilibrium))
    far = []
    for tau in (1e-3, 1e-4):
      found = solve(make_game(payoffs, tau=tau))
      assert found.exploitability.max() < 1e-12
      far.append(abs(np.exp(found.log_pi) - lottery).max())
  assert far[1] < 1e-3
  assert far[1] == pytest.approx(far[0] / 10, rel=0.1)


def test_bots_are_solved_at_low_tau(bots):
  """No reply gains more than tau log K, which is what leaving a uniform reference costs at most.

  The unregularised equilibrium is still far: it depends on payoff differences of a few millionths.
  """
  with jax.enable_x64(True):
    found = jax.jit(exact.equilibrium)(make_game(bots.payoff, tau=1e-3))
    assert found.exploitability < 1e-12
  assert 0 < (bots.payoff @ np.exp(found.log_pi)).max() < 1e-3 * np.log(43)
