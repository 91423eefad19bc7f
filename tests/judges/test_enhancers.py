"""Enhancers: which of several candidates a vote compares with the main agent's response."""

import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.judges.enhancers import CHOICES, ENHANCERS, NONE, choose_right
from nlhf_jax.structs import Comparison, Prompts, Responses

MAIN, CANDIDATES = [[0], [3]], [[0, 1, 2], [1, 2, 3]]


def responses(actions):
  tokens = jnp.array(actions)[:, :, None]
  return Responses(tokens, jnp.ones(tokens.shape, bool))


def from_table(table):
  """A judge, or a spread, of responses that are one token."""

  def look_up(comparison):
    left, right = (side.tokens[:, :, 0] for side in (comparison.left, comparison.right))
    return jnp.asarray(table)[left[:, :, None], right[:, None, :]]

  return look_up


@pytest.fixture
def comparison():
  prompts = Prompts(jnp.zeros((2, 1), int), jnp.ones((2, 1), bool))
  return Comparison(prompts, responses(MAIN), responses(CANDIDATES), jnp.zeros((2, 1, 3)))


@pytest.fixture
def payoff():
  upper = np.triu(np.random.default_rng(0).uniform(-0.5, 0.5, (4, 4)), 1)
  return upper - upper.T


def chosen(name, comparison, judge, spread):
  pair = choose_right(name, comparison, judge, spread)
  assert pair.right.tokens.shape == pair.right.mask.shape == (2, 1, 1)
  assert pair.left is comparison.left
  assert pair.payoff is None
  return pair.right.tokens[:, 0, 0].tolist()


def test_best_of_n_wins_most_among_the_candidates(comparison, payoff):
  nothing = from_table(np.zeros((4, 4)))
  for judged in (payoff, -payoff):
    best = [row[np.argmax(judged[np.ix_(row, row)].mean(axis=1))] for row in CANDIDATES]
    assert chosen('best_of_n', comparison, from_table(judged), nothing) == best


def test_uncertain_has_the_largest_spread_against_the_main_response(comparison, payoff):
  spread = abs(payoff)
  most = [row[np.argmax(spread[main, row])] for (main,), row in zip(MAIN, CANDIDATES, strict=True)]
  assert chosen('uncertain', comparison, from_table(payoff), from_table(spread)) == most


def test_uncertain_avoids_the_main_response_itself(comparison):
  flat = 1 - np.eye(4)  # before any votes all pairs are equally uncertain, but for equal responses
  assert chosen('uncertain', comparison, from_table(0 * flat), from_table(flat)) == [1, 1]


def test_every_enhancer_but_none_makes_a_choice():
  assert ENHANCERS == (NONE, *CHOICES) == ('none', 'best_of_n', 'uncertain')
