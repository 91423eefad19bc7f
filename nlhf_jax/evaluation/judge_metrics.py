"""Metrics of a judge: agreement with people's votes, position bias, and length bias.

Functions of NumPy arrays over n comparisons. `transitivity` measures cycles among several
responses to one prompt.
"""

from typing import NamedTuple

import numpy as np

from nlhf_jax.evaluation import intervals

MIN_PROBABILITY = 1e-6  # in logarithms, probabilities are clipped to this distance from 0 and 1
BINS = 10


class JudgedComparisons(NamedTuple):
  """The verdicts of a judge on n comparisons, and the votes of people.

  `left_first` and `right_first` are P(left > right) with the left or the right response shown
  first; `probability` combines both, NaN where there is no usable verdict (`judge.BothOrders`).
  `votes` is the share of votes for the left response, 1/2 for a tie; `lengths`, [n, 2], are those
  of both responses, in any unit.
  """

  left_first: np.ndarray
  right_first: np.ndarray
  probability: np.ndarray
  votes: np.ndarray
  lengths: np.ndarray


def summarise(judged: JudgedComparisons) -> dict[str, object]:
  """All metrics and the calibration curve, as plain numbers.

  Comparisons without a usable verdict are counted as `unusable` and left out of all other metrics.
  At least one comparison must have a verdict.
  """
  usable = ~np.isnan(judged.probability)
  judged = JudgedComparisons(*(values[usable] for values in judged))
  low, high = accuracy_interval(judged)
  return {
    'comparisons': len(judged.votes),
    'unusable': int(np.sum(~usable)),
    'accuracy': accuracy(judged.probability, judged.votes),
    'accuracy_interval': [low, high],
    'log_loss': log_loss(judged.probability, judged.votes),
    'brier': float(np.mean((judged.probability - judged.votes) ** 2)),
    'calibration_error': calibration_error(judged),
    'consistency': consistency(judged),
    'first_place': float(np.mean(judged.left_first - judged.right_first) / 2),
    'longer': preference_for_longer(judged.probability, judged.lengths),
    'longer_votes': preference_for_longer(judged.votes, judged.lengths),
    'calibration': [bin_._asdict() for bin_ in calibration(judged)],
  }


def agreement_with_votes(probability: np.ndarray, votes: np.ndarray) -> np.ndarray:
  """1 where the judge agrees with the majority, 0 where it does not, 1/2 where either has a tie."""
  return (1 + np.sign(probability - 0.5) * np.sign(votes - 0.5)) / 2


def accuracy(probability: np.ndarray, votes: np.ndarray) -> float:
  """Share of comparisons on which the judge agrees with the majority of votes; ties count half."""
  return float(np.mean(agreement_with_votes(probability, votes)))


def accuracy_interval(judged: JudgedComparisons, level: float = 0.95) -> tuple[float, float]:
  """Clopper and Pearson's interval of the accuracy; an odd number of ties widens it."""
  wins, count = agreement_with_votes(judged.probability, judged.votes).sum(), len(judged.votes)
  low, _ = intervals.clopper_pearson(np.floor(wins), count, level)
  _, high = intervals.clopper_pearson(np.ceil(wins), count, level)
  return float(low), float(high)


def log_loss(probability: np.ndarray, votes: np.ndarray) -> float:
  """Cross-entropy of the votes under the judge, in nats per comparison; ln 2 for a constant 1/2."""
  probability = np.clip(probability, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
  return float(-np.mean(votes * np.log(probability) + (1 - votes) * np.log1p(-probability)))


class Bin(NamedTuple):
  """Comparisons of similar confidence: mean confidence, share of votes in agreement, number."""

  probability: float
  votes: float
  count: int


def calibration(judged: JudgedComparisons) -> list[Bin]:
  """Share of votes for the side that the judge prefers, in bins of the judge's confidence.

  Sides are swapped so that the judge prefers the left one; where it has a tie, votes count half for
  either. Bins are equally wide from 1/2 to 1; empty ones are left out.
  """
  preferred = np.sign(judged.probability - 0.5)
  confidence = 0.5 + preferred * (judged.probability - 0.5)
  votes = 0.5 + preferred * (judged.votes - 0.5)
  indices = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
  members = [indices == index for index in range(BINS)]
  return [
    Bin(float(confidence[at].mean()), float(votes[at].mean()), int(at.sum()))
    for at in members
    if at.any()
  ]


def calibration_error(judged: JudgedComparisons) -> float:
  """Expected calibration error: mean distance between confidence and share of votes over bins."""
  bins = calibration(judged)
  return float(sum(abs(b.probability - b.votes) * b.count for b in bins) / len(judged.votes))


def consistency(judged: JudgedComparisons) -> float:
  """Share of pairs with the same verdict in both orders; a tie in one of them counts half."""
  return float(np.mean(same_verdict(judged.left_first, judged.right_first)))


def same_verdict(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """1 where two probabilities have the same verdict (two ties too), 1/2 where one has a tie."""
  return 1 - np.abs(np.sign(one - 0.5) - np.sign(other - 0.5)) / 2


def preference_for_longer(probability: np.ndarray, lengths: np.ndarray) -> float:
  """Mean probability of the longer response, over pairs of unequal lengths; 1/2 without any."""
  difference = lengths[:, 0] - lengths[:, 1]
  longer = np.where(difference > 0, probability, 1 - probability)[difference != 0]
  return float(np.mean(longer)) if len(longer) else 0.5
