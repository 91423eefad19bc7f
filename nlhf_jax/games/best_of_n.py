"""Best of n as a policy: the best of n samples of a reference, under three rules of what is best.

By the mean win rate among the n samples, by a score that does not depend on them, or by a knockout.
All are exact, on one matrix A = P - 1/2, [K, K], in NumPy's double precision.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy import special

from nlhf_jax.errors import UserError
from nlhf_jax.games.choice import TOLERANCE, tie_margin

RULES = ('win_rate', 'score', 'knockout')
MOST_SAMPLES = 200_000  # of n actions out of K that are listed, regardless of their order


def count_samples(actions: int, n: int) -> int:
  """The number of samples of n actions, regardless of their order."""
  return math.comb(n + actions - 1, n)


def list_samples(
  reference: Float[np.ndarray, 'K'], n: int
) -> tuple[Float[np.ndarray, 'S K'], Float[np.ndarray, 'S']]:
  """How often each action is in each sample of n, and the probability of the sample.

  Raises:
    UserError: if there are more than `MOST_SAMPLES`.
  """
  actions = len(reference)
  if count_samples(actions, n) > MOST_SAMPLES:
    raise UserError(
      f'there are {count_samples(actions, n):,} samples of {n} out of {actions} actions, more than '
      f'{MOST_SAMPLES:,}; choose a smaller n, or the rule score or knockout.'
    )
  counts = np.zeros((1, 0), int)
  for left in range(actions, 0, -1):
    room = n - counts.sum(axis=1)
    if left == 1:
      counts = np.column_stack([counts, room])
      break
    rows = np.repeat(np.arange(len(counts)), room + 1)
    own = np.concatenate([np.arange(most + 1) for most in room])
    counts = np.column_stack([counts[rows], own])
  log_ways = special.gammaln(n + 1) - special.gammaln(counts + 1).sum(axis=1)
  log_chance = log_ways + special.xlogy(counts, reference).sum(axis=1)
  return counts.astype(float), np.exp(log_chance)


def by_win_rate(
  payoff: Float[np.ndarray, 'K K'], reference: Float[np.ndarray, 'K'], n: int
) -> Float[np.ndarray, 'K']:
  """The policy that plays the sampled action of the largest mean payoff among the n samples.

  Ties are split by copies. A sample meets itself, too, which changes no order. As n grows, it
  tends to the best response to the reference, not to an equilibrium.

  Raises:
    UserError: if there are too many samples to list.
  """
  counts, chance = list_samples(reference, n)
  gains = np.where(counts > 0, counts @ payoff.T / n, -np.inf)
  best = gains >= gains.max(axis=1, keepdims=True) - tie_margin(payoff)
  shares = counts * best
  return chance @ (shares / shares.sum(axis=1, keepdims=True))


def by_score(
  scores: Float[np.ndarray, 'K'], reference: Float[np.ndarray, 'K'], n: int
) -> Float[np.ndarray, 'K']:
  """The policy that plays the sample of the largest score: F(y)^n - F(y-)^n, F its distribution.

  Actions of equal scores share that mass as in the reference. The score of a game is P(y > mu).
  """
  order = np.argsort(scores)
  # Scores that only rounding tells apart are equal.
  higher = np.diff(scores[order]) > TOLERANCE * max(1.0, abs(scores).max())
  level = np.empty(len(scores), int)
  level[order] = np.append(0, np.cumsum(higher))
  mass = np.bincount(level, reference)
  below = np.minimum(np.concatenate([[0.0], np.cumsum(mass)]), 1.0)
  below[-1] = 1.0
  played = np.diff(below**n)
  return np.divide(played * 1.0, mass, out=np.zeros_like(mass), where=mass > 0)[level] * reference


def by_knockout(
  payoff: Float[np.ndarray, 'K K'], reference: Float[np.ndarray, 'K'], n: int
) -> Float[np.ndarray, 'K']:
  """The policy that plays the winner of a knockout of n samples, each match one vote drawn from P.

  A round is pi <- 2 pi (P pi) = pi (1 + 2 A pi): replicator dynamics, which turn around an
  equilibrium instead of reaching it.

  Raises:
    UserError: if n is no power of two.
  """
  check_knockout(n)
  pi = np.asarray(reference, float)
  for _ in range(n.bit_length() - 1):
    pi = pi * (1 + 2 * payoff @ pi)
  return pi


def check_knockout(n: int) -> None:
  """Raises `UserError` unless n samples can play a knockout."""
  if n < 1 or n & (n - 1):
    raise UserError(f'a knockout of {n} samples is not possible; choose a power of two, as 4 or 8.')


def best_of_n(
  rule: str, payoff: Float[np.ndarray, 'K K'], reference: Float[np.ndarray, 'K'], n: int
) -> Float[np.ndarray, 'K']:
  """The policy of one of `RULES`; the score is P(y > reference).

  Raises:
    UserError: if n does not suit the rule.
  """
  if rule == 'score':
    return by_score(payoff @ reference, reference, n)
  return {'win_rate': by_win_rate, 'knockout': by_knockout}[rule](payoff, reference, n)


def kl_bound(n: int) -> float:
  """log n - (n - 1) / n, nats: the most KL(pi, mu) of any rule that returns one of n samples of mu.

  Reached by strict orders without atoms only (arXiv 2401.01879); report the KL itself beside it.
  """
  return math.log(n) - (n - 1) / n


def win_rate_bound(n: int) -> float:
  """n / (n + 1): the most P(pi > mu) of any rule that returns one of n samples of mu."""
  return n / (n + 1)
