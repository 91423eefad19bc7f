"""Games with several judges: the robust game, and MaxMin over groups of raters.

Judge m has the antisymmetric payoff A_m = P_m - 1/2. In the *robust game* the adversary chooses one
judge and one opponent for the whole game, max over pi, min over m and pi' of pi A_m pi'; its value
is at most 0. Worst-case payoffs taken pair by pair are no such game: they let the adversary take
another judge for every pair.

MaxMin (arXiv 2402.08925) is max over pi of min_g E_pi r_g - tau KL(pi, mu), where r_g is what group
g thinks of a response, such as its payoff against a *fixed* opponent. In self-play every group's
win rate is 1/2, and the groups cannot be told apart.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from nlhf_jax.errors import UserError
from nlhf_jax.games.asymmetric import AsymmetricGame
from nlhf_jax.games.game import check_payoff, check_reference

WORST_CASE = (
  'worst-case payoffs taken pair by pair are not antisymmetric (the win rates of the two sides add '
  'up to less than 1), so they are no game of preferences'
)


class Robust(NamedTuple):
  """The solution of a zero-sum game: the policy [K], the adversary's mixture, and the value."""

  policy: np.ndarray
  adversary: np.ndarray
  value: float


class MaxMin(NamedTuple):
  """The policy [K], the weights of the groups [G], and the value of the game between them."""

  policy: np.ndarray
  weights: np.ndarray
  value: float


def check_payoffs(payoffs: ArrayLike) -> np.ndarray:
  """The payoffs of M judges, [M, K, K].

  Raises:
    UserError: if they are not antisymmetric, as worst-case payoffs are not.
  """
  payoffs = np.asarray(payoffs, float)
  if payoffs.ndim != 3 or not payoffs.size:
    raise UserError(f'payoffs of judges must be [M, K, K], not of shape {payoffs.shape}.')
  sums = payoffs + payoffs.swapaxes(-1, -2)
  if np.isfinite(sums).all() and sums.max() <= 1e-9 < -sums.min():
    raise UserError(f'{WORST_CASE}; give the payoff of each judge instead, as [M, K, K].')
  check_payoff(payoffs)
  return payoffs


def robust_game(payoffs: ArrayLike) -> Robust:
  """max over pi, min over m and pi' of pi A_m pi', by a linear program.

  The adversary's mixture is [M, K], over pairs of a judge and an opponent. Where the solution is
  not unique, it is some vertex.

  Args:
    payoffs: A_m = P_m - 1/2 of M judges, [M, K, K].

  Raises:
    UserError: if one is not antisymmetric.
  """
  payoffs = check_payoffs(payoffs)
  policy, adversary, value = solve_zero_sum(np.concatenate(payoffs, axis=1))
  return Robust(policy, adversary.reshape(len(payoffs), -1), value)


def regularised_robust_game(
  payoffs: ArrayLike, reference: ArrayLike, opponents: ArrayLike, tau: float
) -> AsymmetricGame:
  """The robust game in which both sides pay tau KL; for `asymmetric.equilibrium`.

  Args:
    payoffs: of M judges, [M, K, K].
    reference: that the policy pays for leaving, [K].
    opponents: that the adversary pays for leaving, [M, K], positive, with the sum 1.
    tau: KL coefficient, above 0.
  """
  payoffs = check_payoffs(payoffs)
  opponents = np.reshape(opponents, -1)
  check_reference(np.asarray(reference, float), payoffs.shape[1])
  check_reference(opponents, payoffs.shape[0] * payoffs.shape[1])
  return AsymmetricGame(
    jnp.asarray(np.concatenate(payoffs, axis=1)),
    jnp.log(jnp.asarray(reference, float)),
    jnp.log(jnp.asarray(opponents)),
    jnp.asarray(tau, float),
  )


def solve_zero_sum(payoff: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
  """x [K], y [J] and the value of max over x, min over y of x M y, by a linear program."""
  rows, columns = payoff.shape
  table = optimize.linprog(
    np.append(np.zeros(rows), -1),
    A_ub=np.column_stack([-payoff.T, np.ones(columns)]),
    b_ub=np.zeros(columns),
    A_eq=np.append(np.ones(rows), 0)[None],
    b_eq=[1],
    bounds=[(0, None)] * rows + [(None, None)],
    method='highs',
  )
  if not table.success:
    raise UserError(f'the linear program was not solved: {table.message}')
  x, y = np.maximum(table.x[:-1], 0), np.maximum(-table.ineqlin.marginals, 0)
  return x / x.sum(), y / y.sum(), float(table.x[-1])


def maxmin(
  rewards: ArrayLike, reference: ArrayLike, tau: float, tolerance: float = 1e-12
) -> MaxMin:
  """max over pi of min_g r_g pi - tau KL(pi, mu), and the least favourable weights w of the groups.

  pi is mu exp(sum_g w_g r_g / tau) / Z, and w minimises the convex dual tau log Z by exponentiated
  gradient, w <- w exp(-step r pi) / Z, with the step tau / max |r|^2 under which it cannot rise.
  With tau = 0, by a linear program.

  Args:
    rewards: of G groups, such as their payoffs against one opponent, A_g mu, [G, K].
    reference: mu, [K].
    tau: KL coefficient.
    tolerance: largest gain of the weights that is left, in units of the rewards.

  Raises:
    UserError: if an argument cannot be used, or it is not reached within a million steps.
  """
  rewards, reference = np.asarray(rewards, float), np.asarray(reference, float)
  if rewards.ndim != 2:
    raise UserError(f'rewards must have the shape [groups, actions], not {list(rewards.shape)}.')
  if not 0 <= tau < np.inf:
    raise UserError(f'tau={tau} must be at least 0, and finite.')
  check_reference(reference, rewards.shape[1])
  if tau == 0:
    return MaxMin(*solve_zero_sum(rewards.T))
  step = tau / (abs(rewards).max() ** 2 or 1)
  logits = np.zeros(len(rewards))
  for _ in range(1_000_000):
    weights = special.softmax(logits)
    tilted = np.log(reference) + weights @ rewards / tau
    policy = special.softmax(tilted)
    gains = rewards @ policy
    if weights @ gains - gains.min() <= tolerance:
      return MaxMin(policy, weights, tau * float(special.logsumexp(tilted)))
    logits = logits - step * gains
    logits -= logits.max()
  raise UserError(f'tau={tau}: the weights of the groups did not settle; raise tau, or take 0.')
