"""The maximal lottery where several exist, and games of groups that never met."""

import numpy as np
import pytest

from nlhf_jax.games import choice, exact, files, matrices


def clones(order=(0, 1, 2, 3)):
  """Rock, paper, a clone of paper and scissors, in some order; scissors win over each paper."""
  payoff = np.array(
    [[0, -0.2, -0.2, 0.2], [0.2, 0, 0, -0.1], [0.2, 0, 0, -0.1], [-0.2, 0.1, 0.1, 0]]
  )
  return payoff[np.ix_(order, order)]


@pytest.mark.parametrize('order', [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_clones_share_alike_in_any_order(order):
  payoff = clones(order)
  lottery = exact.maximal_lottery(payoff)
  np.testing.assert_allclose(lottery, np.array([0.2, 0.2, 0.2, 0.4])[list(order)], atol=1e-9)
  assert not exact.is_unique_equilibrium(payoff, lottery)


def test_clones_of_a_file_share_alike(shared):
  table = files.read(shared / 'field/games/clones.csv')
  lottery = exact.maximal_lottery(table.payoff)
  np.testing.assert_allclose(lottery, [0.2, 0.2, 0.2, 0.4], atol=1e-9)
  assert not exact.is_unique_equilibrium(table.payoff, lottery)


def test_two_winners_that_tie_share_alike():
  payoff = np.array(
    [[0, 0, 0.3, 0.1], [0, 0, 0.1, 0.3], [-0.3, -0.1, 0, 0.2], [-0.1, -0.3, -0.2, 0]]
  )
  np.testing.assert_allclose(exact.maximal_lottery(payoff), [0.5, 0.5, 0, 0], atol=1e-9)


def test_lottery_without_any_preference_is_uniform():
  np.testing.assert_allclose(exact.maximal_lottery(np.zeros((5, 5))), 0.2, atol=1e-9)


def test_an_outsider_limits_the_shares():
  """Both first actions tie, and the third beats the first: the second must be played enough."""
  payoff = np.array([[0, 0, -0.1], [0, 0, 0.3], [0.1, -0.3, 0]])
  lottery = exact.maximal_lottery(payoff)
  np.testing.assert_allclose(lottery, [0.5, 0.5, 0], atol=1e-9)
  payoff[0, 2], payoff[2, 0] = -0.9, 0.9
  lottery = exact.maximal_lottery(payoff)
  np.testing.assert_allclose(lottery, [0.25, 0.75, 0], atol=1e-9)  # where the third gains nothing
  assert not exact.is_unique_equilibrium(payoff, lottery)


@pytest.mark.parametrize('seed', range(6))
def test_no_other_equilibrium_has_more_entropy(seed):
  """At the maximum, moving towards any other equilibrium does not raise the entropy."""
  random = np.random.default_rng(seed)
  payoff = np.triu(random.integers(-1, 2, (9, 9)), 1) * 0.1
  payoff = payoff - payoff.T
  lottery = exact.maximal_lottery(payoff)
  assert (payoff @ lottery).max() < 1e-12
  for _ in range(5):
    order = random.permutation(9)
    again = exact.maximal_lottery(payoff[np.ix_(order, order)])
    np.testing.assert_allclose(again, lottery[order], atol=1e-7)
    vertex = np.zeros(9)
    vertex[order] = exact._find_vertex(payoff[np.ix_(order, order)] / 0.1)
    assert vertex @ np.log(np.maximum(lottery, 1e-12)) >= lottery @ np.log(lottery + 1e-300) - 1e-6


def test_groups_that_never_met_are_found():
  met = np.zeros((5, 5), bool)
  met[0, 3] = met[3, 0] = met[1, 4] = met[4, 1] = True
  assert choice.compared_groups(met) == [[0, 3], [1, 4], [2]]
  assert choice.compared_groups(~met) == [[0, 1, 2, 3, 4]]


def test_bradley_terry_needs_a_connection():
  met = np.ones((4, 4), bool)
  payoff = matrices.random(4)
  assert choice.has_bradley_terry_fit(payoff, met)
  met[:2, 2:] = met[2:, :2] = False
  assert not choice.has_bradley_terry_fit(payoff, met)


@pytest.mark.parametrize(
  ('text', 'ending', 'met'),
  [
    ('left,right,winner\na,b,left\nc,d,left\na,b,right\n', 'csv', [['a', 'b'], ['c', 'd']]),
    (',a,b,c\na,,0.7,\nb,,,\nc,,,\n', 'csv', [['a', 'b'], ['c']]),
    ('{"payoffs": [[0, 1, null], [-1, 0, null], [null, null, 0]]}', 'json', [['1', '2'], ['3']]),
    ('{"wins": [[0, 1, 0], [1, 0, 2], [0, 0, 0]]}', 'json', [['1', '2', '3']]),
  ],
)
def test_files_say_who_met(text, ending, met, tmp_path):
  path = tmp_path / f'game.{ending}'
  path.write_text(text)
  table = files.read(path)
  found = choice.compared_groups(table.met)
  assert [[table.names[action] for action in group] for group in found] == met


def test_arena_battles_are_read(shared, tmp_path):
  table = files.read(shared / 'field/games/arena.csv')
  assert table.names == ('gpt', 'claude', 'llama')
  np.testing.assert_array_equal(table.payoff, [[0, 0.5, 0], [-0.5, 0, -0.5], [0, 0.5, 0]])
  one_hot = 'id,model_a,model_b,prompt,winner_model_a,winner_model_b,winner_tie\n'
  one_hot += '1,x,y,"[""a,\nb""]",1,0,0\n2,y,x,"c",0,0,1\n'
  (tmp_path / 'kaggle.csv').write_text(one_hot)
  table = files.read(tmp_path / 'kaggle.csv')
  assert (table.names, table.payoff[0, 1]) == (('x', 'y'), 0.25)
  assert table.notes[0] == 'Columns not used: id, prompt.'
  indexed = ',question_id,model_a,model_b,winner,judge\n0,q,x,y,model_b,arena_user\n'
  (tmp_path / 'pandas.csv').write_text(indexed + f'1,{"q" * 200_000},x,y,both_bad,arena_user\n')
  assert files.read(tmp_path / 'pandas.csv').payoff[0, 1] == -0.25
