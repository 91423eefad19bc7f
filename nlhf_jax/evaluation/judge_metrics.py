"""How good a judge is: beside people's votes, with the sides swapped, and where lengths differ.

Functions of NumPy arrays over n comparisons. What a judge makes of one prompt's responses all
together, cycles among them, is in `transitivity`.
"""

from typing import NamedTuple

import numpy as np

from nlhf_jax.evaluation import intervals

SURE = 1e-6  # probabilities are kept this far from 0 and 1 in logarithms
BINS = 10


class JudgedComparisons(NamedTuple):
  """What was said of n comparisons.

  `shown` and `swapped` are the judge's P(left > right), asked with the left response first and with
  the right one first, and `chance` is what it makes of both, NaN where it has nothing usable to say
  (see `judges.Word`); `votes` is the share of people's votes for the left one, 1/2 for a tie;
  `lengths` [n, 2] are those of both responses, in whatever unit.
  """

  shown: np.ndarray
  swapped: np.ndarray
  chance: np.ndarray
  votes: np.ndarray
  lengths: np.ndarray


def summarise(judged: JudgedComparisons) -> dict[str, object]:
  """All scalars, and the calibration curve, as plain numbers.

  Comparisons of which the judge says nothing usable are counted as `unusable`, and in no other
  figure. There must be some others.
  """
  usable = ~np.isnan(judged.chance)
  judged = JudgedComparisons(*(values[usable] for values in judged))
  low, high = accuracy_interval(judged)
  return {
    'comparisons': len(judged.votes),
    'unusable': int(np.sum(~usable)),
    'accuracy': accuracy(judged.chance, judged.votes),
    'accuracy_interval': [low, high],
    'log_loss': log_loss(judged.chance, judged.votes),
    'brier': float(np.mean((judged.chance - judged.votes) ** 2)),
    'calibration_error': calibration_error(judged),
    'consistency': consistency(judged),
    'first_place': float(np.mean(judged.shown - judged.swapped) / 2),
    'longer': preference_for_longer(judged.chance, judged.lengths),
    'longer_votes': preference_for_longer(judged.votes, judged.lengths),
    'calibration': [bin_._asdict() for bin_ in calibration(judged)],
  }


def agreement_with_votes(chance: np.ndarray, votes: np.ndarray) -> np.ndarray:
  """1 where the judge sides with most votes, 0 where not, 1/2 where either of them has a tie."""
  return (1 + np.sign(chance - 0.5) * np.sign(votes - 0.5)) / 2


def accuracy(chance: np.ndarray, votes: np.ndarray) -> float:
  """How often the judge sides with most votes; a tie counts half."""
  return float(np.mean(agreement_with_votes(chance, votes)))


def accuracy_interval(judged: JudgedComparisons, level: float = 0.95) -> tuple[float, float]:
  """Clopper and Pearson's interval of the accuracy; what is left of half a tie widens it."""
  wins, count = agreement_with_votes(judged.chance, judged.votes).sum(), len(judged.votes)
  low, _ = intervals.clopper_pearson(np.floor(wins), count, level)
  _, high = intervals.clopper_pearson(np.ceil(wins), count, level)
  return float(low), float(high)


def log_loss(chance: np.ndarray, votes: np.ndarray) -> float:
  """Cross-entropy of the votes under the judge, nats a comparison; ln 2 for one that never says."""
  chance = np.clip(chance, SURE, 1 - SURE)
  return float(-np.mean(votes * np.log(chance) + (1 - votes) * np.log1p(-chance)))


class Bin(NamedTuple):
  """Comparisons that a judge is about equally sure of: how sure, how many votes it is right by."""

  chance: float
  votes: float
  count: int


def calibration(judged: JudgedComparisons) -> list[Bin]:
  """How often the side that a judge prefers is voted for, by how sure of it the judge is.

  Sides are renamed so that the judge prefers the left one; where it prefers none, votes count half
  for either. Bins are equally wide from 1/2 to 1, and those of no comparison are left out.
  """
  preferred = np.sign(judged.chance - 0.5)
  chance = 0.5 + preferred * (judged.chance - 0.5)
  votes = 0.5 + preferred * (judged.votes - 0.5)
  places = np.minimum(((chance - 0.5) * 2 * BINS).astype(int), BINS - 1)
  members = [places == place for place in range(BINS)]
  return [
    Bin(float(chance[at].mean()), float(votes[at].mean()), int(at.sum()))
    for at in members
    if at.any()
  ]


def calibration_error(judged: JudgedComparisons) -> float:
  """Mean distance between how sure the judge is and how often it is right (the usual ECE)."""
  bins = calibration(judged)
  return float(sum(abs(b.chance - b.votes) * b.count for b in bins) / len(judged.votes))


def consistency(judged: JudgedComparisons) -> float:
  """How often a judge prefers the same response in both orders; a tie in one counts half."""
  return accuracy(judged.shown, judged.swapped)


def preference_for_longer(chance: np.ndarray, lengths: np.ndarray) -> float:
  """Mean probability given to the longer response, where one is longer; 1/2 where none ever is."""
  difference = lengths[:, 0] - lengths[:, 1]
  of_longer = np.where(difference > 0, chance, 1 - chance)[difference != 0]
  return float(np.mean(of_longer)) if len(of_longer) else 0.5
