"""Win rates, their intervals and tables, on made-up records."""

import numpy as np
import pytest
from scipy import stats

from nlhf_jax.evaluation import ranking, tournament
from nlhf_jax.reporting import formatting
from nlhf_jax.structs import Prompts, Responses

PROMPTS = 7


@pytest.fixture
def prompts():
  return Prompts(np.arange(3 * PROMPTS).reshape(PROMPTS, 3), np.ones((PROMPTS, 3), bool))


@pytest.fixture
def sides():
  random = np.random.default_rng(0)
  return [
    Responses(random.integers(0, 50, (PROMPTS, 1, 4)), np.ones((PROMPTS, 1, 4), bool))
    for _ in range(3)
  ]


def judge(comparison):
  """An antisymmetric payoff: the larger sum of tokens wins, by how much it is larger."""
  left, right = comparison.left.tokens, comparison.right.tokens
  return np.tanh((left.sum(-1)[:, :, None] - right.sum(-1)[:, None, :]) / 50) / 2


def test_preferences_of_both_sides_sum_to_one(prompts, sides):
  table = tournament.compare_policies(judge, prompts, sides)
  assert table.shape == (PROMPTS, 3, 3)
  np.testing.assert_allclose(table + table.swapaxes(1, 2), 1, atol=1e-12)
  assert np.all(table[:, range(3), range(3)] == 0.5)
  assert not np.any(table[:, 0, 1] == 0.5)


def test_preferences_are_the_judges_payoffs(prompts, sides):
  table = tournament.compare_policies(judge, prompts, sides)
  for row in range(PROMPTS):
    for i, left in enumerate(sides):
      for j, right in enumerate(sides):
        payoff = np.tanh((left.tokens[row].sum() - right.tokens[row].sum()) / 50) / 2
        assert table[row, i, j] == pytest.approx(0.5 + payoff)


def test_a_judge_of_single_responses_reads_each_at_most_twice_for_eleven_policies():
  random, count = np.random.default_rng(1), 8
  prompts = Prompts(np.zeros((count, 3), int), np.ones((count, 3), bool))
  sides = [
    Responses(random.integers(0, 50, (count, 1, 4)), np.ones((count, 1, 4), bool))
    for _ in range(11)
  ]
  read = []

  def counting(comparison):
    itself = comparison.right is comparison.left
    read.extend([comparison.left.tokens.size, 0 if itself else comparison.right.tokens.size])
    return judge(comparison)

  table = tournament.compare_policies(counting, prompts, sides)
  assert sum(read) == 2 * sum(side.tokens.size for side in sides)
  sums = np.stack([side.tokens[:, 0].sum(axis=-1) for side in sides], axis=1)
  expected = 0.5 + np.tanh((sums[:, :, None] - sums[:, None]) / 50) / 2
  np.testing.assert_allclose(table, expected, atol=1e-12)


@pytest.mark.parametrize('count', [2, 3, 50])
def test_interval_equals_scipys(count):
  values = np.random.default_rng(1).uniform(0.4, 0.6, (count, 2, 2))
  low, high = tournament.t_interval(values)
  # Two values may be so far apart that the interval leaves [0, 1].
  expected = stats.t.interval(0.95, count - 1, values.mean(0), stats.sem(values))
  np.testing.assert_allclose((low, high), np.clip(expected, 0, 1), atol=1e-12)


def test_interval_has_95_percent_coverage():
  runs = np.random.default_rng(2).beta(2, 3, (20, 4000))
  low, high = tournament.t_interval(runs)
  assert np.mean((low <= 0.4) & (high >= 0.4)) == pytest.approx(0.95, abs=0.02)


def test_interval_of_one_value_is_everything():
  low, high = tournament.t_interval(np.array([[[0.5, 0.7], [0.3, 0.5]]]))
  np.testing.assert_array_equal(low, np.zeros((2, 2)))
  np.testing.assert_array_equal(high, np.ones((2, 2)))


def test_interval_is_clipped_to_probabilities():
  low, high = tournament.t_interval(np.array([[0.0, 0.9], [1.0, 0.9], [1.0, 0.9]]))
  np.testing.assert_allclose((low, high), [[0, 0.9], [1, 0.9]])


def test_results_are_means_over_records():
  records = [
    {
      'responses': {'sft': 'a', 'nash_md': 'b c'},
      'tokens': {'sft': 2, 'nash_md': 3},
      'log_ratio': {'sft': 0.0, 'nash_md': ratio},
      'preferences': {'oracle': [[0.5, chance], [1 - chance, 0.5]]},
    }
    for ratio, chance in ((1.0, 0.1), (2.0, 0.2), (6.0, 0.6))
  ]
  results = tournament.summarise(records)
  assert results['policies'] == ['sft', 'nash_md']
  assert results['comparisons'] == 3
  assert results['kl_to_reference'] == {'sft': 0, 'nash_md': 3}
  assert results['length'] == {'sft': 2, 'nash_md': 3}
  table = results['tables']['oracle']
  np.testing.assert_allclose(table['win_rate'], [[0.5, 0.3], [0.7, 0.5]])
  half = stats.t.ppf(0.975, 2) * np.std([0.1, 0.2, 0.6], ddof=1) / np.sqrt(3)
  np.testing.assert_allclose(table['low'], [[0.5, max(0, 0.3 - half)], [0.7 - half, 0.5]])
  np.testing.assert_allclose(table['high'], [[0.5, 0.3 + half], [min(1, 0.7 + half), 0.5]])


def test_table_names_rows_and_columns():
  table = {'win_rate': [[0.5, 0.25], [0.75, 0.5]], 'low': [[0.5, 0], [0.5, 0.5]]}
  table['high'] = [[0.5, 0.5], [1, 0.5]]
  text = formatting.format_text('Title', *tournament.format_cells(['sft', 'nash'], table))
  title, head, *rows = text.splitlines()
  assert title == 'Title'
  assert head.split() == ['sft', 'nash']
  assert [row.split()[0] for row in rows] == ['sft', 'nash']
  assert '0.250 [0.000, 0.500]' in rows[0]
  assert len({len(line) for line in (head, *rows)}) == 1


def test_ranking_is_the_equilibrium_of_the_table():
  # a beats b by .2, b beats c by .1, c beats a by .3: the lottery is (.1, .3, .2) / .6; d loses.
  win_rate = [
    [0.5, 0.7, 0.2, 0.9],
    [0.3, 0.5, 0.6, 0.8],
    [0.8, 0.4, 0.5, 0.9],
    [0.1, 0.2, 0.1, 0.5],
  ]
  ranked = ranking.rank(['a', 'b', 'c', 'd'], np.array([win_rate] * 5))
  assert [row['policy'] for row in ranked] == ['b', 'c', 'a', 'd']
  np.testing.assert_allclose(
    [row['lottery'] for row in ranked], [1 / 2, 1 / 3, 1 / 6, 0], atol=1e-9
  )
  np.testing.assert_allclose(
    [row['win_rate'] for row in ranked], [0.5, 0.5, 0.5, 0.1 / 6 + 0.2 / 2 + 0.1 / 3], atol=1e-9
  )


@pytest.mark.parametrize('order', [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_clones_share_the_lottery_and_it_is_not_unique(order):
  rock_paper_paper_scissors = np.array(
    [[0.5, 0.7, 0.7, 0.3], [0.3, 0.5, 0.5, 0.6], [0.3, 0.5, 0.5, 0.6], [0.7, 0.4, 0.4, 0.5]]
  )
  table = rock_paper_paper_scissors[np.ix_(order, order)]
  names = np.array(['rock', 'paper', 'clone', 'scissors'])[order].tolist()
  responses = {name: name for name in names}
  records = [{'responses': responses, 'preferences': {'judge': table.tolist()}}] * 3
  results = tournament.summarise(records)
  shares = {row['policy']: row['lottery'] for row in results['ranking']['judge']}
  expected = {'rock': 0.2, 'paper': 0.2, 'clone': 0.2, 'scissors': 0.4}
  assert shares == pytest.approx(expected, abs=1e-7)
  assert results['lottery_is_unique'] == {'judge': False}


def test_unstable_lottery_has_a_wide_interval():
  wins = np.full((40, 2, 2), 0.5)
  wins[:21, 0, 1], wins[21:, 0, 1] = 0.9, 0.1  # 21 prompts of 40 for the first
  wins[:, 1, 0] = 1 - wins[:, 0, 1]
  first, second = ranking.rank(['a', 'b'], wins)
  assert (first['policy'], first['lottery'], first['win_rate']) == ('a', 1.0, 0.5)
  assert (first['low'], first['high']) == (second['low'], second['high']) == (0.0, 1.0)


def test_columns_of_many_policies_are_numbered():
  names = [f'policy {number}' for number in range(tournament.MAX_WITH_INTERVALS + 1)]
  even = np.full((len(names), len(names)), 0.5)
  table = {'win_rate': even, 'low': even - 0.1, 'high': even + 0.1}
  rows, columns, cells = tournament.format_cells(names, table)
  assert rows[0] == ' 1 policy 0'
  assert columns == [str(number + 1) for number in range(len(names))]
  assert cells[2][3] == '0.500'
  assert tournament.widest_half_width(table) == pytest.approx(0.1)


def test_exploitability_by_policy_and_judges():
  wins = [{'player': 'sft', 'trained_by': 'oracle', 'oracle': [0.6, 0.8], 'learned': [0.5, 0.5]}]
  found = tournament.exploitability(wins)['sft']['oracle']
  assert found['oracle']['win_rate'] == pytest.approx(0.7)
  assert found['oracle']['low'] < 0.6 < 0.8 < found['oracle']['high']
  assert found['learned'] == {'win_rate': 0.5, 'low': 0.5, 'high': 0.5}
