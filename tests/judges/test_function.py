"""A Python function as a judge: what it may return, and that both orders count."""

import numpy as np
import pytest

from nlhf_jax import judges
from nlhf_jax.data import tokenizers
from nlhf_jax.errors import UserError
from nlhf_jax.judges.judge import judge_from_texts
from nlhf_jax.structs import Comparison

PROMPTS, LEFT, RIGHT = ['a', 'b', 'c'], ['1', '2', '3'], ['4', '5', '6']


@pytest.mark.parametrize(
  ('returned', 'expected'),
  [
    ([0, 0.5, 1], [0, 0.5, 1]),
    ([True, False, True], [1, 0, 1]),
    (np.float32([0.25, 0.5, 0]), [0.25, 0.5, 0]),
    ([None, np.nan, 1], [np.nan, np.nan, 1]),
  ],
)
def test_probabilities_and_votes_are_accepted(returned, expected):
  chances = judges.from_function(lambda *_: returned)(PROMPTS, LEFT, RIGHT)
  np.testing.assert_array_equal(chances, expected)


@pytest.mark.parametrize(
  ('returned', 'reason'),
  [
    (0.5, 'must return one probability for each of 3 pairs, not an array of shape ().'),
    ([0.5], 'must return one probability for each of 3 pairs, not an array of shape (1,).'),
    ([[0.5]] * 3, 'not an array of shape (3, 1).'),
    (['yes', 'no', 'no'], "must return 3 numbers, not ['yes', 'no', 'no']."),
    (None, 'not an array of shape ().'),
    ([0, 1.5, 1], 'returned 1.5 for pair 1; P(left > right) must be in [0, 1].'),
    ([0, 0, -1], 'returned -1 for pair 2; P(left > right) must be in [0, 1].'),
    ([np.inf, 0, 0], 'returned inf for pair 0;'),
    ([None] * 3, 'returned NaN for all 3 pairs; at least one needs a preference.'),
  ],
)
def test_a_bad_return_value_names_the_function(returned, reason):
  def mine(prompts, left, right):
    return returned

  with pytest.raises(UserError) as caught:
    judges.from_function(mine)(PROMPTS, LEFT, RIGHT)
  assert str(caught.value).startswith("the judge 'test_a_bad_return_value_names_the_function")
  assert "mine'" in str(caught.value)
  assert reason in str(caught.value)


def test_preferring_the_first_position_cancels():
  tokenizer = tokenizers.train(['one two three four'], 300)
  prompts = tokenizers.pad_prompts(tokenizer, tokenizers.prompt_ids(tokenizer, ['one', 'two']), 8)
  sides = (
    tokenizers.pad_responses(tokenizer, tokenizers.response_ids(tokenizer, texts), 8)
    for texts in (['one', 'two two'], ['one two', 'two'])
  )
  comparison = Comparison(prompts, *sides)

  def first_or_longer(prompts, left, right):
    assert prompts == ['one', 'two']
    return [0.9 if len(a) > len(b) else 0.6 for a, b in zip(left, right, strict=True)]

  payoff = judge_from_texts(judges.from_function(first_or_longer), tokenizer)(comparison)
  np.testing.assert_allclose(payoff[:, 0, 0], [-0.15, 0.15])
