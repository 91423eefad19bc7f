"""Judges without a network, fitted on comparisons: by the lengths and by the words of responses."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, sparse, special

STRENGTHS = (0.1, 1.0, 10.0)  # inverse regularisation; the best on a tenth of the prompts is used
MAX_WORDS = 50_000
WORD = re.compile(r'\w\w+')
OPTIMIZER = dict(maxiter=300, maxls=50, gtol=1e-4, ftol=64 * np.finfo(float).eps)


class Texts(NamedTuple):
  """n comparisons as texts, and the share of votes for the left response."""

  prompts: Sequence[str]
  left: Sequence[str]
  right: Sequence[str]
  votes: np.ndarray


Baseline = Callable[[Texts], np.ndarray]  # P(left > right), [n]


def response_lengths(texts: Texts) -> np.ndarray:
  """Characters of both responses, [n, 2]."""
  return np.array(
    [[len(one), len(other)] for one, other in zip(texts.left, texts.right, strict=True)]
  )


def make_longer_baseline(texts: Texts) -> Baseline:
  """Gives the longer response its share of the votes in `texts`; 1/2 for equal lengths."""
  signs = np.sign(np.subtract(*response_lengths(texts).T))
  share = float(np.mean((0.5 + signs * (texts.votes - 0.5))[signs != 0])) if signs.any() else 0.5
  return lambda new: 0.5 + np.sign(np.subtract(*response_lengths(new).T)) * (share - 0.5)


def make_bag_of_words(texts: Texts, seed: int) -> Baseline | None:
  """Logistic regression on the difference of the two responses' TF-IDF vectors.

  It has no intercept, and so no bias towards a side. Split votes count for both sides. The
  regularisation is chosen on a tenth of the prompts. None if there is only one prompt, or no word
  that two texts have in common.
  """
  vectorize = _make_vectorizer([*texts.left, *texts.right])
  prompts = sorted(set(texts.prompts))
  if vectorize is None or len(prompts) < 2:
    return None
  features = vectorize(texts.left) - vectorize(texts.right)
  # With unit mean square, a strength has the same effect for long texts and for short ones.
  scale = max(sparse.linalg.norm(features) / len(texts.votes) ** 0.5, 1e-9)
  features /= scale
  order = np.random.default_rng(seed).permutation(len(prompts))
  chosen = {prompts[row] for row in order[: max(len(prompts) // 10, 1)]}
  held_out = np.array([prompt in chosen for prompt in texts.prompts])

  def loss(strength):
    weights = _fit(features[~held_out], texts.votes[~held_out], strength)
    probability = np.clip(special.expit(features[held_out] @ weights), 1e-6, 1 - 1e-6)
    votes = texts.votes[held_out]
    return -np.mean(votes * np.log(probability) + (1 - votes) * np.log1p(-probability))

  weights = _fit(features, texts.votes, min(STRENGTHS, key=loss)) / scale
  return lambda new: special.expit((vectorize(new.left) - vectorize(new.right)) @ weights)


def _make_vectorizer(
  texts: Sequence[str],
) -> Callable[[Sequence[str]], sparse.csr_array] | None:
  """TF-IDF with (1 + log count) (1 + log((1 + n) / (1 + texts with the word))); None: no words.

  Words have two or more characters, and occur in two texts or more; the most frequent are used.
  """
  counts = [_count_words(text) for text in texts]
  containing, total = Counter(), Counter()
  for count in counts:
    containing.update(count.keys())
    total.update(count)
  words = sorted(word for word, number in containing.items() if number > 1)
  words = sorted(words, key=lambda word: -total[word])[:MAX_WORDS]
  if not words:
    return None
  column = {word: place for place, word in enumerate(words)}
  rarity = 1 + np.log((1 + len(texts)) / (1 + np.array([containing[word] for word in words])))

  def vectorize(texts):
    counts = [
      (row, column[word], number)
      for row, text in enumerate(texts)
      for word, number in _count_words(text).items()
      if word in column
    ]
    rows, columns, numbers = np.reshape(np.array(counts, int), (-1, 3)).T
    values = (1 + np.log(numbers)) * rarity[columns]
    return sparse.csr_array((values, (rows, columns)), shape=(len(texts), len(words)))

  return vectorize


def _count_words(text: str) -> Counter:
  return Counter(WORD.findall(text.lower()))


def _fit(features: sparse.csr_array, votes: np.ndarray, strength: float) -> np.ndarray:
  """Weights that minimise the mean cross-entropy of the votes + |w|^2 / (2 strength n)."""
  penalty = 1 / (strength * len(votes))

  def loss(weights):
    margin = features @ weights
    losses = votes * np.logaddexp(0, -margin) + (1 - votes) * np.logaddexp(0, margin)
    gradient = features.T @ (special.expit(margin) - votes) / len(votes) + penalty * weights
    return np.mean(losses) + penalty / 2 * weights @ weights, gradient

  start = np.zeros(features.shape[1])
  return optimize.minimize(loss, start, jac=True, method='L-BFGS-B', options=OPTIMIZER).x
