"""Social choice on a payoff matrix: winners, transitive and cyclic parts, disc games.

Functions of one NumPy matrix A = P - 1/2, [K, K].
"""

from typing import NamedTuple

import numpy as np
from scipy import linalg, sparse

TOLERANCE = 1e-12  # payoffs below this fraction of the largest are ties


def tie_margin(payoff: np.ndarray) -> float:
  """The margin up to which two actions are tied."""
  return TOLERANCE * float(abs(payoff).max())


def condorcet_winner(payoff: np.ndarray) -> int | None:
  """The action that beats every other one, if there is any."""
  beaten = (payoff > tie_margin(payoff)).sum(axis=1)
  winner = int(beaten.argmax())
  return winner if beaten[winner] == len(payoff) - 1 else None


def borda_scores(payoff: np.ndarray) -> np.ndarray:
  """Mean win probability against all actions, [K]; the largest wins.

  A Bradley-Terry reward fitted to uniformly sampled pairs ranks actions in the same order.
  """
  return payoff.mean(axis=1) + 0.5


def copeland_scores(payoff: np.ndarray) -> np.ndarray:
  """Actions beaten less actions that beat it, [K]; the largest wins."""
  return (
    (payoff > tie_margin(payoff)).sum(axis=1) - (payoff < -tie_margin(payoff)).sum(axis=1)
  ).astype(float)


def worst_defeats(payoff: np.ndarray) -> np.ndarray:
  """The largest margin by which an action is beaten, [K]; the smallest wins (Simpson, minimax)."""
  return payoff.max(axis=0)


def three_cycles(payoff: np.ndarray) -> int:
  """The number of triples in which each action beats the next."""
  beats = (payoff > tie_margin(payoff)).astype(float)
  return round(np.trace(beats @ beats @ beats) / 3)


class Decomposition(NamedTuple):
  """A = ratings_i - ratings_j + cyclic, orthogonal; `share` is the transitive part of |A|^2."""

  ratings: np.ndarray
  cyclic: np.ndarray
  share: float


def hodge(payoff: np.ndarray) -> Decomposition:
  """The combinatorial Hodge decomposition on the complete graph, with equal weights for all pairs.

  Ratings, and all rows of the cyclic part, sum to 0. The share of a payoff of zeros is 1.
  """
  ratings = payoff.mean(axis=1)
  transitive = ratings[:, None] - ratings
  energy = (payoff**2).sum()
  share = (transitive**2).sum() / energy if energy > 0 else 1.0
  return Decomposition(ratings, payoff - transitive, float(share))


class DiscGame(NamedTuple):
  """strength (u v^T - v u^T): a disc game on an orthonormal pair of directions."""

  strength: float
  u: np.ndarray
  v: np.ndarray


def disc_games(payoff: np.ndarray) -> list[DiscGame]:
  """The disc games that A is a sum of, by its real Schur form, the strongest first, without zeros.

  The sum of the first r is the best approximation of rank 2 r among antisymmetric matrices.
  """
  form, basis = linalg.schur(payoff, output='real')
  found, i = [], 0
  while i < len(payoff) - 1:
    strength = (form[i, i + 1] - form[i + 1, i]) / 2
    if abs(strength) > len(payoff) * tie_margin(payoff):
      u, v = basis[:, i], basis[:, i + 1]
      found.append(DiscGame(abs(strength), *((u, v) if strength > 0 else (v, u))))
      i += 1
    i += 1
  return sorted(found, key=lambda turn: -turn.strength)


def compared_groups(met: np.ndarray) -> list[list[int]]:
  """The actions that are connected by comparisons, in groups; none connects two groups.

  Args:
    met: whether a pair was compared, [K, K], symmetric.
  """
  count, labels = sparse.csgraph.connected_components(met, directed=False)
  return [np.flatnonzero(labels == group).tolist() for group in range(count)]


def has_bradley_terry_fit(payoff: np.ndarray, met: np.ndarray) -> bool:
  """Whether the best fit to the pairs that `met` [K, K] has finite rewards.

  It has if no group of actions always beats all others, or never met them.
  """
  if abs(payoff).max() > 0.5:
    return False
  groups, _ = sparse.csgraph.connected_components(met & (payoff > -0.5), connection='strong')
  return groups == 1
