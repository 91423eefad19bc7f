"""What can be said of comparisons without reading them: by length, and by which words there are."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

STRENGTHS = (
  0.1,
  1.0,
  10.0,
)  # inverse, of the regularisation; one is taken on a tenth of the prompts


class Texts(NamedTuple):
  """n comparisons as texts, and the share of votes for the left ones."""

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
  """The longer response, as often as the texts' votes are for it; 1/2 where none is."""
  signs = np.sign(np.subtract(*response_lengths(texts).T))
  share = float(np.mean((0.5 + signs * (texts.votes - 0.5))[signs != 0])) if signs.any() else 0.5
  return lambda asked: 0.5 + np.sign(np.subtract(*response_lengths(asked).T)) * (share - 0.5)


def make_bag_of_words(texts: Texts, seed: int) -> Baseline | None:
  """Logistic regression on the difference of both responses' words, weighed by how rare they are.

  It has no intercept, and so no liking for a side. Votes that are split count for both sides. How
  strongly it is regularised is chosen on a tenth of the prompts. None if there is one prompt only,
  or no word in two texts.
  """
  words = TfidfVectorizer(sublinear_tf=True, min_df=2, max_features=50_000, norm=None)
  try:
    words.fit([*texts.left, *texts.right])
  except ValueError:  # there is no word in two texts
    return None
  features = _difference(words, texts)
  # So that a strength means the same for long texts and for short ones.
  scale = max(sparse.linalg.norm(features) / len(texts.votes) ** 0.5, 1e-9)
  features /= scale
  asked = sorted(set(texts.prompts))
  if len(asked) < 2:
    return None
  order = np.random.default_rng(seed).permutation(len(asked))
  chosen = {asked[row] for row in order[: max(len(asked) // 10, 1)]}
  held_out = np.array([prompt in chosen for prompt in texts.prompts])

  def loss(strength):
    model = _fitted(features[~held_out], texts.votes[~held_out], strength)
    chance = np.clip(model.predict_proba(features[held_out])[:, 1], 1e-6, 1 - 1e-6)
    votes = texts.votes[held_out]
    return -np.mean(votes * np.log(chance) + (1 - votes) * np.log1p(-chance))

  model = _fitted(features, texts.votes, min(STRENGTHS, key=loss))
  return lambda asked: model.predict_proba(_difference(words, asked) / scale)[:, 1]


def _difference(words, texts):
  return words.transform(texts.left) - words.transform(texts.right)


def _fitted(features, votes, strength):
  both = sparse.vstack([features, features])
  labels = np.repeat([1, 0], len(votes))
  model = LogisticRegression(C=strength, fit_intercept=False, max_iter=300)
  return model.fit(both, labels, sample_weight=np.concatenate([votes, 1 - votes]))
