"""Games by name, as payoffs A = P - 1/2 over [K, K] in NumPy's double precision.

`A[i, j]` is positive if action i is preferred to action j. `files.py` reads games from files.
"""

import itertools
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from nlhf_jax.ranges import AtLeastOne, Fraction, Positive, Range, Seed

THIRD = Range('in [-1/3, 1/3]', lambda e: abs(e) <= 1 / 3)


def rock_paper_scissors(a: Positive = 0.5, b: Positive = 0.5, c: Positive = 0.5) -> np.ndarray:
  """The third beats the second by a, the first the third by b, the second the first by c.

  If all are positive, the equilibrium is (a, b, c) / (a + b + c): the probability of an action is
  proportional to the margin between the two others.
  """
  return np.array([[0, -c, b], [c, 0, -a], [-b, a, 0]], float)


def bradley_terry(rewards: ArrayLike) -> np.ndarray:
  """P(i > j) = sigmoid(r_i - r_j)."""
  rewards = np.asarray(rewards, float)
  return np.tanh((rewards[:, None] - rewards) / 2) / 2  # sigmoid - 1/2, antisymmetric to the bit


def additive(rewards: ArrayLike) -> np.ndarray:
  """A[i, j] = r_i - r_j, under which the equilibrium is mu exp(r / tau) / Z: RLHF."""
  rewards = np.asarray(rewards, float)
  return rewards[:, None] - rewards


def population(scores: ArrayLike, shares: ArrayLike | None = None) -> np.ndarray:
  """Raters who prefer the action that they score higher, and vote 1/2 on a tie.

  Args:
    scores: the score of each rater for each action, [Z, K].
    shares: the fraction of the population of each type of rater, [Z]; equal by default.
  """
  scores = np.asarray(scores, float)
  shares = np.full(len(scores), 1 / len(scores)) if shares is None else np.asarray(shares, float)
  votes = np.sign(scores[:, :, None] - scores[:, None, :]) / 2
  return np.tensordot(shares, votes, axes=1)


def random_population(
  actions: AtLeastOne = 5, raters: AtLeastOne = 9, seed: Seed = 0
) -> np.ndarray:
  """Raters who each rank the actions in a random order, all orders being equally likely."""
  return population(np.random.default_rng(seed).random((raters, actions)))


def three_raters() -> np.ndarray:
  """Three transitive raters whose majority is not transitive (arXiv 2312.00886, appendix C.2)."""
  return population([[2, 1, 3], [4, 6, 5], [9, 8, 7]])


def rater_types(e: Annotated[float, THIRD] = 0.1) -> np.ndarray:
  """Types of raters who each care about one pair of actions only (arXiv 2312.00886, section 3.2).

  Shares 1/3 - e, 1/3 + e/2, 1/3 + e/2. For |e| < 1/3 the equilibrium is
  (1/3 + e/2, 1/3 + e/2, 1/3 - e), while the best reward jumps from y2 to y1 as e passes 0.
  """
  # Wins of type 1: y2 over y1; of type 2: y1 over y3; of type 3: y3 over y2.
  wins = ((1, 0), (0, 2), (2, 1))
  payoff = np.zeros((3, 3))
  for (winner, loser), share in zip(wins, (1 / 3 - e, 1 / 3 + e / 2, 1 / 3 + e / 2), strict=True):
    payoff[winner, loser] = share / 2
    payoff[loser, winner] = -share / 2
  return payoff


def elo_example() -> np.ndarray:
  """Bradley-Terry holds, and yet the best reward is not the best policy once policies are
  constrained to pi(y1) = 2 pi(y2) (arXiv 2312.00886, appendix A)."""
  return bradley_terry([0, np.log(9), np.log(2)])


def dice(faces: Sequence[Sequence[float]] = ((2, 4, 9), (1, 6, 8), (3, 5, 7))) -> np.ndarray:
  """The higher roll wins; non-transitive by default (arXiv 2312.00886, appendix C.1)."""
  return np.array(
    [[np.mean(np.sign(np.subtract.outer(i, j))) / 2 for j in faces] for i in faces], float
  )


def strict_cycle(actions: AtLeastOne = 3) -> np.ndarray:
  """Every action surely beats those of the half circle after it; the equilibrium is uniform."""
  after = (np.arange(actions) - np.arange(actions)[:, None]) % actions
  return np.where(after == 0, 0, np.sign(actions / 2 - after)) / 2


def disc(points: ArrayLike) -> np.ndarray:
  """Points of the plane, [K, 2]: A[i, j] = x_i y_j - y_i x_j, the purely cyclic game."""
  x, y = np.asarray(points, float).T
  return np.outer(x, y) - np.outer(y, x)


def random_disc(actions: AtLeastOne = 7, seed: Seed = 0) -> np.ndarray:
  """`disc` of points uniform in the disc of radius sqrt(1/2), so that |A| <= 1/2."""
  angle, area = np.random.default_rng(seed).random((2, actions))
  radius = np.sqrt(area / 2)
  angle = 2 * np.pi * angle
  return disc(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1))


def blotto(soldiers: AtLeastOne = 5, fields: AtLeastOne = 3) -> np.ndarray:
  """Colonel Blotto: the player with more soldiers on more fields wins; equal numbers tie.

  Actions are the ways to distribute the soldiers, in lexicographic order (`placements`).
  """
  armies = placements(soldiers, fields)
  fields_won = np.sign(armies[:, None] - armies).sum(axis=-1)
  return np.sign(fields_won) / 2


def placements(soldiers: int, fields: int) -> np.ndarray:
  """All ways to distribute the soldiers over the fields, one per row."""
  ways = itertools.product(range(soldiers + 1), repeat=fields)
  return np.array([way for way in ways if sum(way) == soldiers])


def morra(fingers: AtLeastOne = 3) -> np.ndarray:
  """Morra: show some fingers and guess the other's; a player who alone guesses right wins the sum.

  Actions are (shown, guessed), in lexicographic order; a payoff is the sum over 4 `fingers`, at
  most 1/2.
  """
  moves = np.array(list(itertools.product(range(1, fingers + 1), repeat=2)))
  shown, guessed = moves.T
  right = guessed[:, None] == shown
  total = shown[:, None] + shown
  return (right.astype(float) - right.T) * total / (4 * fingers)


def random(actions: AtLeastOne = 10, seed: Seed = 0, batch: Sequence[int] = ()) -> np.ndarray:
  """P = sigmoid of a standard normal for every pair, [*batch, K, K]."""
  normal = np.random.default_rng(seed).normal(size=(*batch, actions, actions))
  upper = np.triu(special.expit(normal) - 0.5, 1)
  return upper - upper.swapaxes(-1, -2)


def dial(actions: AtLeastOne = 10, cyclic: Fraction = 0.5, seed: Seed = 0) -> np.ndarray:
  """From transitive to cyclic: (1 - cyclic) times rewards in order, plus cyclic times a cycle.

  The transitive part ranks the actions from the last to the first; both parts have |A| <= 1/2.
  """
  rewards = np.sort(np.random.default_rng(seed).random(actions))
  transitive = additive(rewards) / 2
  return (1 - cyclic) * transitive + cyclic * strict_cycle(actions)


def prompts(actions: AtLeastOne = 3, count: AtLeastOne = 8, seed: Seed = 0) -> np.ndarray:
  """A contextual game: one random game per prompt, [X, K, K]."""
  return random(actions, seed, (count,))


def with_equilibrium(skew: ArrayLike, policy: ArrayLike) -> np.ndarray:
  """B - (B p) 1^T + 1 (B p)^T: antisymmetric as B is, and A p = 0, so that p is an equilibrium."""
  skew = np.asarray(skew, float)
  gain = skew @ np.asarray(policy, float)
  return skew - gain[:, None] + gain


def with_regularised_equilibrium(payoff: ArrayLike, policy: ArrayLike, tau: float) -> np.ndarray:
  """The reference, [K], that makes a policy p > 0 the equilibrium: p exp(-A p / tau) / Z."""
  policy = np.asarray(policy, float)
  return special.softmax(np.log(policy) - np.asarray(payoff, float) @ policy / tau)
