"""Selection of responses: frequencies of the exact policies, ties, votes and the KL."""

import numpy as np
import pytest

from nlhf_jax.evaluation import best_of_responses
from nlhf_jax.evaluation.best_of_responses import select_responses
from nlhf_jax.games import best_of_n

FOUR = np.array(
  [[0.5, 0.1, 0.8, 0.7], [0.9, 0.5, 0.1, 0.6], [0.2, 0.9, 0.5, 0.8], [0.3, 0.4, 0.2, 0.5]]
)
MU = np.array([0.4, 0.3, 0.2, 0.1])
PROMPTS = [str(number) for number in range(4_000)]


def by_table(prompts, left, right):
  return np.array([FOUR[int(one), int(other)] for one, other in zip(left, right, strict=True)])


def draw(number):
  random = np.random.default_rng(number)
  return [str(action) for action in random.choice(4, len(PROMPTS), p=MU)]


@pytest.mark.parametrize('rule', ['win_rate', 'knockout'])
def test_selected_responses_are_the_exact_policy(rule, monkeypatch):
  monkeypatch.setattr(best_of_responses, 'DRAWS', 8)
  found = select_responses(rule, by_table, PROMPTS, draw, 4, 0)
  shares = np.bincount(list(map(int, found.responses)), minlength=4) / len(PROMPTS)
  exact = best_of_n.best_of_n(rule, FOUR - 0.5, MU, 4)
  error = np.sqrt(exact * (1 - exact) / len(PROMPTS))
  assert (abs(shares - exact) < 4 * error + 1e-3).all()
  assert abs(shares - MU).max() > 0.05
  assert found.judged == len(PROMPTS) * {'win_rate': 6, 'knockout': 3}[rule]
  assert (found.kl is None) == (rule == 'knockout')


def test_score_compares_with_further_responses():
  drawn = {0: ['0'], 1: ['1'], 2: ['2'], 3: ['2']}  # P(0 > 2) = .8, P(1 > 2) = .1
  found = select_responses('score', by_table, ['p'], drawn.__getitem__, 2, 0)
  assert found.responses == ['0']
  assert found.judged == 4
  assert found.kl == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))


def test_pairs_without_a_verdict_are_ties():
  none = lambda prompts, left, right: np.full(len(left), np.nan)
  drawn = {0: ['a'], 1: ['b']}
  found = select_responses('win_rate', none, ['p'], drawn.__getitem__, 2, 0)
  assert found.responses == ['a']
  assert (found.judged, found.missing) == (1, 1)
  assert found.kl == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
  ('n', 'texts', 'expected'), [(4, 4, 0.5903101627), (8, 8, 1.1625558137), (4, 1, 0)]
)
def test_kl_of_a_strict_order(n, texts, expected):
  order = np.arange(n) % texts
  payoff = np.sign(order[:, None] - order) / 2
  words = [str(place) for place in order]
  found = best_of_responses.kl_of_win_rate(payoff, words, np.random.default_rng(0))
  assert found == pytest.approx(expected, abs=0.02)
  assert found <= best_of_n.kl_bound(n)
