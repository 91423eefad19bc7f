"""Baselines that judge by length, and by words."""

import numpy as np
import pytest

from nlhf_jax.evaluation import baselines
from nlhf_jax.evaluation.baselines import Texts


def test_longer_response_gets_its_share_of_votes():
  texts = Texts(['a'] * 4, ['xx', 'x', 'x', 'xx'], ['x', 'xx', 'x', 'x'], np.array([1, 0.5, 1, 0]))
  np.testing.assert_array_equal(baselines.response_lengths(texts), [[2, 1], [1, 2], [1, 1], [2, 1]])
  preference = baselines.make_longer_baseline(texts)
  share = (1 + 0.5 + 0) / 3
  np.testing.assert_allclose(preference(texts), [share, 1 - share, 0.5, share])


def test_equal_lengths_are_a_tie():
  texts = Texts(['a'], ['x'], ['y'], np.array([1.0]))
  np.testing.assert_array_equal(baselines.make_longer_baseline(texts)(texts), [0.5])


def test_bag_of_words_finds_preferred_words():
  random = np.random.default_rng(0)
  words = np.array(['good', 'bad', *(f'word{number}' for number in range(30))])

  def text(first):
    return ' '.join([words[first], *random.choice(words[2:], 6)])

  left, right = random.integers(2, size=(2, 600))
  probability = np.array([[0.5, 0.9], [0.1, 0.5]])[left, right]  # of left: `good` is word 0
  votes = (random.random(600) < probability).astype(float)
  texts = Texts([f'p{n % 200}' for n in range(600)], [*map(text, left)], [*map(text, right)], votes)
  preference = baselines.make_bag_of_words(texts, seed=0)
  predicted = preference(texts)
  assert np.mean(abs(predicted - probability)) < 0.1
  swapped = Texts(texts.prompts, texts.right, texts.left, 1 - votes)
  np.testing.assert_allclose(preference(swapped), 1 - predicted, atol=1e-6)
  assert preference(Texts(['q'], ['good thing'], ['bad thing'], np.array([1.0])))[0] == (
    pytest.approx(0.9, abs=0.06)
  )


def test_bag_of_words_equals_scikit_learn():
  text = pytest.importorskip('sklearn.feature_extraction.text')
  linear = pytest.importorskip('sklearn.linear_model')
  random = np.random.default_rng(0)
  words = np.array([f'wort-{letter}' for letter in 'äbcdefgh'])
  left, right = (
    [' '.join(random.choice(words, random.integers(3, 9))) for _ in range(200)] for _ in range(2)
  )
  votes = random.choice([0, 1 / 3, 2 / 3, 1], 200)
  vectorizer = text.TfidfVectorizer(sublinear_tf=True, min_df=2, norm=None).fit([*left, *right])
  features = (vectorizer.transform(left) - vectorizer.transform(right)).toarray()
  scale = np.mean(np.sum(features**2, axis=1)) ** 0.5
  sample_weight = np.concatenate([votes, 1 - votes])
  expected = [
    linear.LogisticRegression(C=strength, fit_intercept=False, max_iter=300)
    .fit(np.tile(features / scale, (2, 1)), np.repeat([1, 0], 200), sample_weight)
    .predict_proba(features / scale)[:, 1]
    for strength in baselines.STRENGTHS
  ]
  texts = Texts([f'p{n % 50}' for n in range(200)], left, right, votes)
  predicted = baselines.make_bag_of_words(texts, seed=0)(texts)
  assert min(np.abs(predicted - one).max() for one in expected) < 1e-9


def test_bag_of_words_needs_enough_words_and_prompts():
  votes = np.array([1.0, 0.0])
  assert baselines.make_bag_of_words(Texts(['p', 'q'], ['a', 'bb'], ['cc', 'dd'], votes), 0) is None
  assert (
    baselines.make_bag_of_words(Texts(['p', 'p'], ['aa', 'bb'], ['aa', 'cc'], votes), 0) is None
  )
