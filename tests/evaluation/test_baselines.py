"""Judges that read nothing: by length, and by words."""

import numpy as np
import pytest

from nlhf_jax.evaluation import baselines
from nlhf_jax.evaluation.baselines import Texts


def test_the_longer_one_gets_its_share_of_the_votes():
  texts = Texts(['a'] * 4, ['xx', 'x', 'x', 'xx'], ['x', 'xx', 'x', 'x'], np.array([1, 0.5, 1, 0]))
  np.testing.assert_array_equal(baselines.response_lengths(texts), [[2, 1], [1, 2], [1, 1], [2, 1]])
  preference = baselines.make_longer_baseline(texts)
  share = (1 + 0.5 + 0) / 3
  np.testing.assert_allclose(preference(texts), [share, 1 - share, 0.5, share])


def test_where_nothing_differs_in_length_nothing_is_said():
  texts = Texts(['a'], ['x'], ['y'], np.array([1.0]))
  np.testing.assert_array_equal(baselines.make_longer_baseline(texts)(texts), [0.5])


def test_words_that_are_voted_for_are_found_and_sides_are_alike():
  random = np.random.default_rng(0)
  words = np.array(['good', 'bad', *(f'word{number}' for number in range(30))])

  def text(first):
    return ' '.join([words[first], *random.choice(words[2:], 6)])

  left, right = random.integers(2, size=(2, 600))
  chance = np.array([[0.5, 0.9], [0.1, 0.5]])[left, right]  # of left: `good` is word 0
  votes = (random.random(600) < chance).astype(float)
  texts = Texts([f'p{n % 200}' for n in range(600)], [*map(text, left)], [*map(text, right)], votes)
  preference = baselines.make_bag_of_words(texts, seed=0)
  said = preference(texts)
  assert np.mean(abs(said - chance)) < 0.1
  swapped = Texts(texts.prompts, texts.right, texts.left, 1 - votes)
  np.testing.assert_allclose(preference(swapped), 1 - said, atol=1e-6)
  assert preference(Texts(['q'], ['good thing'], ['bad thing'], np.array([1.0])))[0] == (
    pytest.approx(0.9, abs=0.06)
  )
