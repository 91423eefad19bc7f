"""The alignment game of k samples against one, of which a user chooses the best (arXiv 2601.08777).

Its payoff is a *choice*: the probability that each of several actions is chosen among all of them.
Preferences between pairs do not determine it. Here users are of several types, each with a ranking
of the actions; or choose by rewards, as Plackett and Luce's users do. Equal actions share a choice.
NumPy, in double precision.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, special

from nlhf_jax.errors import UserError
from nlhf_jax.games.best_of_n import list_samples
from nlhf_jax.games.exact import maximal_lottery

STEP = 0.3  # of multiplicative weights, for chances scaled to a mean of 1/2
TOLERANCE = 1e-12  # of the gap, and of the logits of a regularised equilibrium
MOST_UPDATES = 200_000

# (policy [K], k) -> u [K]: the chance that each action is chosen among itself and k samples.
Choice = Callable[[np.ndarray, int], np.ndarray]


class Rankings(NamedTuple):
  """Types of users: `orders[g]` lists all actions, best first; `shares` sum to 1."""

  orders: Int[np.ndarray, 'G K']
  shares: Float[np.ndarray, 'G']

  @property
  def payoff(self) -> Float[np.ndarray, 'K K']:
    """P(row is preferred to column) - 1/2."""
    places = np.argsort(self.orders, axis=1)
    beats = np.sign(places[:, None, :] - places[:, :, None]) / 2
    return np.tensordot(self.shares, beats, axes=1)


def make_rankings(orders, shares) -> Rankings:
  """Types of users, checked.

  Args:
    orders: a ranking of all K actions for each type, best first; a matrix of pairwise preferences
      will not do.
    shares: of the types, which sum to 1.

  Raises:
    UserError: that names the type.
  """
  orders, shares = np.asarray(orders), np.asarray(shares, float)
  for number, order in enumerate(np.atleast_2d(orders)):
    if sorted(order.tolist()) != list(range(len(order))):
      raise UserError(
        f'type {number + 1} is {order.tolist()}, which does not rank the actions 0 to '
        f'{len(order) - 1}: the best of k needs choices among all of them, which preferences '
        'between pairs do not determine; give each type of users a ranking.'
      )
  if shares.shape != orders.shape[:1] or (shares < 0).any() or abs(shares.sum() - 1) > 1e-9:
    raise UserError(f'the shares {shares.tolist()} must be one for each type, and sum to 1.')
  return Rankings(orders, shares)


def choose_by_rankings(users: Rankings) -> Choice:
  """u(y) = sum_g w_g [(B + p)^(k+1) - B^(k+1)] / ((k+1) p), B the mass that type g ranks below y.

  With p = pi(y); it is B^k at p = 0.
  """

  def chances(pi, k):
    found = np.zeros_like(pi)
    for order, share in zip(users.orders, users.shares, strict=True):
      own = pi[order]
      below = np.append(np.cumsum(own[::-1])[::-1][1:], 0.0)
      # The quotient as a sum, which has no difference of nearly equal numbers in it.
      powers = [(below + own) ** i * below ** (k - i) for i in range(k + 1)]
      found[order] += share * np.mean(powers, axis=0)
    return found

  return chances


def choose_by_rewards(reward: Float[np.ndarray, 'K']) -> Choice:
  """Plackett and Luce's choice, softmax of the rewards over the k + 1 actions, by listing samples.

  Raises:
    UserError: from the function, if there are too many samples to list.
  """
  weight = np.exp(reward - np.max(reward))

  def chances(pi, k):
    counts, chance = list_samples(pi, k)
    return chance @ (weight / (counts @ weight[:, None] + weight))

  return chances


def choice_gap(choice: Choice, pi: Float[np.ndarray, 'K'], k: int) -> float:
  """(k + 1) max_y u(y) - 1: zero only at a symmetric equilibrium, as sum_y pi(y) u(y) = 1/(k+1).

  k samples of an equilibrium win against any single opponent with probability k / (k + 1).
  """
  return float((k + 1) * choice(pi, k).max() - 1)


def choice_equilibrium(users: Rankings, k: int) -> Float[np.ndarray, 'K']:
  """A symmetric equilibrium of k samples against one, [K].

  The maximal lottery at k = 1. From k = 2 on, the limit of multiplicative weights from the uniform
  policy: their last iterate converges without a penalty, because a crowded action wins less.

  Raises:
    UserError: if k is below 1, or it does not converge.
  """
  if k < 1:
    raise UserError(f'k={k} samples cannot be compared with one; choose 1 or more.')
  if k == 1:
    return maximal_lottery(users.payoff)
  choice, log_pi = choose_by_rankings(users), np.zeros(users.orders.shape[1])
  for _ in range(MOST_UPDATES):
    pi = special.softmax(log_pi)
    chances = choice(pi, k)
    if (k + 1) * chances.max() - 1 < TOLERANCE:
      return pi
    log_pi = log_pi + STEP * (k + 1) / 2 * chances
    log_pi = np.maximum(log_pi - log_pi.max(), -700.0)  # exp(-700) is the least that is not 0
  raise UserError(
    f'the best of {k} against one was not solved in {MOST_UPDATES:,} updates; use '
    'regularised_choice_equilibrium.'
  )


def regularised_choice_equilibrium(
  choice: Choice, k: int, reference: Float[np.ndarray, 'K'], tau: float
) -> Float[np.ndarray, 'K']:
  """The solution of pi = mu exp(u / tau) / Z, [K], with the chances u of k samples against one.

  Args:
    choice: `choose_by_rankings` or `choose_by_rewards`.
    k: number of samples.
    reference: mu, all above 0.
    tau: KL coefficient, in probability per nat.

  Raises:
    UserError: if it is not found.
  """
  log_mu = np.log(reference)
  residual = lambda logits, at: logits - (log_mu + choice(special.softmax(logits), k) / at)
  logits = log_mu
  for at in tau * 2.0 ** np.arange(6, -1, -1):  # each solution is the start for half the tau
    found = optimize.root(residual, logits, args=(at,), tol=TOLERANCE)
    logits = found.x
  if abs(residual(logits, tau)).max() > 1e-9:
    raise UserError(f'no equilibrium was found at tau={tau:g}; choose a larger tau.')
  return special.softmax(logits)
