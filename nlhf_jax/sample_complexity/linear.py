"""Classes of preferences that are, or whose log-odds are, linear in features.

Features phi(x, a, b) are [X, K, K, F] and antisymmetric in a and b, which makes a pair's features
a row of a regression, and the sum of their outer products over all votes its information matrix.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import expit, logit
from jaxtyping import Array, Float
from scipy import stats

from nlhf_jax import linear_algebra
from nlhf_jax.sample_complexity.classes import Counts, PreferenceClass
from nlhf_jax.sample_complexity.setting import mirror
from nlhf_jax.sample_complexity.unstructured import noise_bound

Features = Float[Array, 'X K K F']
SWEEPS = 3  # of coordinate ascent over the prompts, for the largest width of their sum
NEWTON_STEPS = 30


def linear(features: Features, ridge: float = 1.0, size: float = 1.0) -> PreferenceClass:
  """P = 1/2 + <phi, theta>, estimated by ridge least squares on the votes less 1/2.

  The error is |theta - estimate|^2 in the norm of the information matrix plus `ridge`. The estimate
  and `worst` may lie outside [0, 1].

  Args:
    features: features of every pair, of full rank.
    ridge: penalty on |theta|^2, in votes.
    size: upper bound of |theta|, which the radius depends on if there is a ridge.
  """

  def estimate(wins):
    matrix = information_matrix(features, wins + mirror(wins), ridge)
    theta = linear_algebra.solve(matrix, weighted_features(features, (wins - mirror(wins)) / 2))
    return 0.5 + features @ theta

  def moved(estimate, change):
    return estimate + features @ change

  def difference(estimate, member):
    return member - estimate

  def radius(estimate, counts, delta):
    noise = noise_bound(features.shape[-1], delta)
    return (jnp.sqrt(noise) + np.sqrt(ridge) * size) ** 2

  return make_ellipsoid_class(features, ridge, estimate, jnp.ones_like, moved, difference, radius)


def logistic(features: Features, ridge: float = 1e-6) -> PreferenceClass:
  """P = sigmoid <phi, theta>, estimated by (penalised) maximum likelihood.

  Errors are those of `linear` in log-odds. Widths, of probabilities, use the slope at the estimate,
  P (1 - P) phi: they are exact for payoffs in log-odds, and of first order otherwise. The radius is
  that of an asymptotically normal estimate in its largest direction.
  """

  def steps(wins):
    counts = wins + mirror(wins)

    def one(_, theta):
      p = expit(features @ theta)
      slope = weighted_features(features, wins - counts * p) - ridge * theta
      change = linear_algebra.solve(
        information_matrix(features, counts * p * (1 - p), ridge), slope
      )
      return theta + change * jnp.minimum(1, 2 / jnp.max(abs(features @ change)))

    return lax.fori_loop(0, NEWTON_STEPS, one, jnp.zeros(features.shape[-1], wins.dtype))

  def estimate(wins):
    return expit(features @ steps(wins))

  def slope(estimate):
    return estimate * (1 - estimate)

  def moved(estimate, change):
    return expit(logit(estimate) + features @ change)

  def difference(estimate, member):
    return logit(member) - logit(estimate)

  def radius(estimate, counts, delta):
    fisher = information_matrix(features, counts * slope(estimate), ridge)
    spread = linear_algebra.solve(fisher, information_matrix(features, counts, ridge))
    largest = jnp.max(abs(linear_algebra.eigenvalues(spread)))
    return largest * stats.chi2.ppf(1 - delta, features.shape[-1])

  return make_ellipsoid_class(features, ridge, estimate, slope, moved, difference, radius)


def make_ellipsoid_class(
  features, ridge, estimate, slope, moved, difference, radius
) -> PreferenceClass:
  """A class whose confidence sets are ellipsoids around theta, in the information matrix's norm.

  Args:
    features: of every pair.
    ridge: added to the information matrix.
    estimate: wins -> preference.
    slope: estimate -> derivative of P by <phi, theta>.
    moved: (estimate, change of theta) -> preference.
    difference: (estimate, member) -> change of <phi, theta>.
    radius: see `PreferenceClass`.
  """
  flat = features.reshape(-1, features.shape[-1])
  inverse = linear_algebra.pseudo_inverse(flat)

  def norms(counts, gradients):
    return linear_algebra.inverse_norms(information_matrix(features, counts, ridge), gradients)

  def error(estimate, counts, member):
    change = inverse @ difference(estimate, member).ravel()
    return change @ information_matrix(features, counts, ridge) @ change

  def width(estimate, counts, weights):
    return norms(counts, weighted_features(features, weights * slope(estimate)))

  def bonus(estimate, counts):
    return norms(counts, features * slope(estimate)[..., None])

  def widest(estimate, counts, candidates):
    scaled = candidates * slope(estimate)[:, None]
    gradients = jnp.einsum('xjab,xabf->xjf', scaled, features) / 2
    every = jnp.arange(len(features))

    def sweep(_, chosen):
      return lax.fori_loop(0, len(features), improve, chosen)

    def improve(prompt, chosen):
      # All candidates of one prompt, with the current choices of the other prompts.
      picked = gradients[every, chosen]
      others = picked.sum(axis=0) - picked[prompt]
      return chosen.at[prompt].set(jnp.argmax(norms(counts, others + gradients[prompt])))

    return lax.fori_loop(0, SWEEPS, sweep, jnp.argmax(norms(counts, gradients), axis=1))

  def worst(estimate, counts, weights, budget):
    gradient = weighted_features(features, weights * slope(estimate))
    direction = linear_algebra.solve(information_matrix(features, counts, ridge), gradient)
    squared = gradient @ direction
    step = jnp.sqrt(budget / jnp.where(squared > 0, squared, 1))
    return moved(estimate, -step * direction)

  def potential(counts):
    empty = linear_algebra.log_determinant(information_matrix(features, 0 * counts, ridge))
    full = linear_algebra.log_determinant(information_matrix(features, counts, ridge))
    return 2 * (full - empty)

  return PreferenceClass(estimate, error, width, bonus, widest, worst, radius, potential)


def information_matrix(features: Features, counts: Counts, ridge: float) -> Float[Array, 'F F']:
  """Sum over comparisons of phi phi^T, plus ridge I; the sum has every pair twice."""
  matrix = jnp.einsum('xab,xabf,xabg->fg', counts, features, features) / 2
  return matrix + ridge * jnp.eye(features.shape[-1], dtype=features.dtype)


def weighted_features(features: Features, weights: Float[Array, 'X K K']) -> Float[Array, 'F']:
  """Sum over pairs a < b of w_ab phi(a, b), of the antisymmetric part of w."""
  return jnp.einsum('xab,xabf->f', (weights - mirror(weights)) / 2, features) / 2


def difference_features(items: Float[Array, 'X K F']) -> Features:
  """phi(a, b) = u_a - u_b: a linear reward; with `logistic` the Bradley-Terry model."""
  return items[:, :, None] - items[:, None]


def product_features(items: Float[Array, 'X K R']) -> Features:
  """u_a u_b^T - u_b u_a^T above its diagonal, F = R (R - 1) / 2: general bilinear preferences.

  <phi, theta> = u_a^T Theta u_b for any antisymmetric Theta, which may have cycles.
  """
  rows, columns = jnp.triu_indices(items.shape[-1], 1)
  outer = items[:, :, None, :, None] * items[:, None, :, None, :]
  return (outer - mirror(outer))[..., rows, columns]
