"""Antisymmetric combinations of judges, and what they do not guarantee."""

import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.evaluation.judgements import Question, combine_judgements
from nlhf_jax.games import exact
from nlhf_jax.games.game import make_game
from nlhf_jax.judges.combined import RULES, Combination, combine_judges

pytestmark = pytest.mark.usefixtures('float64')


def antisymmetric(ab, ac, bc):
  upper = np.array([[0, ab, ac], [0, 0, bc], [0, 0, 0]])
  return upper - upper.T


# Three judges, and their combinations: shared/spec/methods.md, section 11.
JUDGES = np.stack(
  [antisymmetric(-0.4, 0.3, -0.4), antisymmetric(0.1, 0.2, -0.3), antisymmetric(-0.1, 0.4, 0.1)]
)


def combine(by, spreads=None):
  return np.asarray(Combination(by, ('a', 'b', 'c'), spreads).rule(jnp.asarray(JUDGES)))


@pytest.mark.parametrize(
  ('by', 'lottery', 'guarantee', 'regularised'),
  [
    ('mean', np.array([6, 9, 4]) / 19, -0.0947368421, (0.4015906299, 0.3785565748, 0.2198527953)),
    ('midrange', np.array([1, 2, 1]) / 4, -0.125, (0.3565641606, 0.4212023772, 0.2222334622)),
    ('agree', np.array([1, 0, 0]), -0.4, (0.4899262430, 0.3708638893, 0.1392098677)),
  ],
)
def test_solutions_and_guarantees_are_those_of_the_specification(
  by, lottery, guarantee, regularised
):
  payoff = combine(by)
  np.testing.assert_allclose(payoff, -payoff.T)
  assert (payoff @ lottery).max() < 1e-12  # an equilibrium; that of `agree` is not unique
  if by != 'agree':
    np.testing.assert_allclose(exact.maximal_lottery(payoff), lottery, atol=1e-9)
  assert (lottery @ JUDGES).min() == pytest.approx(guarantee, abs=1e-10)
  policy = np.exp(exact.equilibrium(make_game(payoff, tau=0.1), 1e-22).log_pi)
  np.testing.assert_allclose(policy, regularised, atol=1e-10)


def test_shrink_takes_spreads_off_the_mean():
  average, spread = JUDGES.mean(axis=0), JUDGES.std(axis=0)
  np.testing.assert_allclose(combine('shrink', 0.0), average)
  shrunk = combine('shrink', 1.0)
  np.testing.assert_allclose(shrunk, -shrunk.T)
  np.testing.assert_allclose(shrunk[0, 2], average[0, 2] - spread[0, 2])  # 0.3 less 0.0816
  assert shrunk[0, 1] == shrunk[1, 2] == 0  # they differ by more than they prefer
  assert not combine('shrink', 100.0).any()


def test_a_penalty_of_the_spread_cancels_in_the_odd_part():
  worst = JUDGES.min(axis=0)
  np.testing.assert_allclose(worst + worst.T, -(JUDGES.max(axis=0) - worst))
  np.testing.assert_allclose((worst - worst.T) / 2, combine('midrange'))
  penalised = JUDGES.mean(axis=0) - 2.0 * JUDGES.std(axis=0)
  np.testing.assert_allclose((penalised - penalised.T) / 2, combine('mean'), atol=1e-15)


@pytest.mark.parametrize('by', RULES)
def test_no_verdict_of_one_judge_is_none_of_the_combination(by):
  rule = Combination(by, ('a', 'b'), 1.0 if by == 'shrink' else None).rule
  payoffs = [np.array([[[0.1, np.nan]]]), np.array([[[0.3, 0.2]]])]
  judge = combine_judges([lambda _, one=one: one for one in payoffs], rule)
  first, second = np.asarray(judge(None))[0, 0]
  assert np.isfinite(first)
  assert np.isnan(second)


def test_judgements_are_combined_from_both_orders():
  """The payoffs of the two judges are 0.3 and -0.1, after a bias towards the first place."""
  first = lambda questions: np.array([0.9 if it.left == 'x' else 0.3 for it in questions])
  second = lambda questions: np.array([0.5 if it.left == 'x' else 0.7 for it in questions])
  judge = combine_judgements({'first': first, 'second': second}, {}, RULES['mean'])
  questions = [Question('p', 'x', 'y', ('a', 'b')), Question('p', 'y', 'x', ('b', 'a'))]
  np.testing.assert_allclose(judge(questions), [0.6, 0.4])
