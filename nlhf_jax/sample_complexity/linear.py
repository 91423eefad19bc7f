"""Classes with few numbers for all pairs: preferences, or their log-odds, linear in features.

Features phi(x, a, b) are [X, K, K, F] and antisymmetric in a and b, which makes a pair's features
a row of a regression, and the sum of their outer products over all votes its information matrix.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import expit, logit
from jaxtyping import Array, Float
from scipy import stats

from nlhf_jax.sample_complexity.classes import Counts, PreferenceClass
from nlhf_jax.sample_complexity.setting import mirror
from nlhf_jax.sample_complexity.unstructured import noise_bound

Features = Float[Array, 'X K K F']
SWEEPS = 3  # over the prompts, to find where all of them together are the widest
NEWTON_STEPS = 30


def linear(features: Features, ridge: float = 1.0, size: float = 1.0) -> PreferenceClass:
  """P = 1/2 + <phi, theta>, estimated by ridge least squares on the votes less 1/2.

  The error is |theta - estimate|^2 in the norm of the information matrix plus `ridge`. `worst` and
  the estimate may leave [0, 1], which the class does not know of.

  Args:
    features: of every pair; all theta must be told apart by some.
    ridge: what a unit of |theta|^2 costs, in votes.
    size: the largest |theta| there may be, which the radius needs if there is a ridge.
  """

  def estimate(wins):
    matrix = information_matrix(features, wins + mirror(wins), ridge)
    theta = jnp.linalg.solve(matrix, weighted_features(features, (wins - mirror(wins)) / 2))
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

  Errors are those of `linear` in log-odds; widths, of probabilities, follow their slope at the
  estimate, P (1 - P) phi: exact for payoffs in log-odds, and to first order else. The radius is
  that of a normal estimate, in its largest direction; for many votes it holds the truth.
  """

  def steps(wins):
    counts = wins + mirror(wins)

    def one(_, theta):
      p = expit(features @ theta)
      slope = weighted_features(features, wins - counts * p) - ridge * theta
      change = jnp.linalg.solve(information_matrix(features, counts * p * (1 - p), ridge), slope)
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
    spread = jnp.linalg.solve(fisher, information_matrix(features, counts, ridge))
    largest = jnp.linalg.norm(jnp.linalg.eigvals(spread), jnp.inf)
    return largest * stats.chi2.ppf(1 - delta, features.shape[-1])

  return make_ellipsoid_class(features, ridge, estimate, slope, moved, difference, radius)


def make_ellipsoid_class(
  features, ridge, estimate, slope, moved, difference, radius
) -> PreferenceClass:
  """What both classes share: ellipsoids around theta, in the norm of the information matrix.

  Args:
    features: of every pair.
    ridge: added to the information matrix.
    estimate: wins -> preference.
    slope: estimate -> what P moves by for a unit of <phi, theta>.
    moved: (estimate, change of theta) -> preference.
    difference: (estimate, member) -> change of <phi, theta>.
    radius: as in the record.
  """
  flat = features.reshape(-1, features.shape[-1])
  inverse = jnp.linalg.pinv(flat)

  def norms(counts, gradients):
    """The norm of each gradient by theta, [*B, F], in the inverse of the information matrix."""
    factor = jnp.linalg.cholesky(information_matrix(features, counts, ridge))
    rows = gradients.reshape(-1, gradients.shape[-1]).T
    solved = jax.scipy.linalg.solve_triangular(factor, rows, lower=True)
    return jnp.sqrt((solved**2).sum(axis=0)).reshape(gradients.shape[:-1])

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
      # All candidates of one prompt, beside what the others have chosen.
      picked = gradients[every, chosen]
      others = picked.sum(axis=0) - picked[prompt]
      return chosen.at[prompt].set(jnp.argmax(norms(counts, others + gradients[prompt])))

    return lax.fori_loop(0, SWEEPS, sweep, jnp.argmax(norms(counts, gradients), axis=1))

  def worst(estimate, counts, weights, budget):
    gradient = weighted_features(features, weights * slope(estimate))
    direction = jnp.linalg.solve(information_matrix(features, counts, ridge), gradient)
    squared = gradient @ direction
    step = jnp.sqrt(budget / jnp.where(squared > 0, squared, 1))
    return moved(estimate, -step * direction)

  def potential(counts):
    empty = jnp.linalg.slogdet(information_matrix(features, 0 * counts, ridge))[1]
    return 2 * (jnp.linalg.slogdet(information_matrix(features, counts, ridge))[1] - empty)

  return PreferenceClass(estimate, error, width, bonus, widest, worst, radius, potential)


def information_matrix(features: Features, counts: Counts, ridge: float) -> Float[Array, 'F F']:
  """Sum over comparisons of phi phi^T, plus ridge I; every pair is met in the sum twice."""
  matrix = jnp.einsum('xab,xabf,xabg->fg', counts, features, features) / 2
  return matrix + ridge * jnp.eye(features.shape[-1], dtype=features.dtype)


def weighted_features(features: Features, weights: Float[Array, 'X K K']) -> Float[Array, 'F']:
  """Sum over pairs a < b of w_ab phi(a, b), where w is antisymmetric, or is made so."""
  return jnp.einsum('xab,xabf->f', (weights - mirror(weights)) / 2, features) / 2


def difference_features(items: Float[Array, 'X K F']) -> Features:
  """phi(a, b) = u_a - u_b: the features of a reward, and with `logistic` Bradley-Terry."""
  return items[:, :, None] - items[:, None]


def product_features(items: Float[Array, 'X K R']) -> Features:
  """u_a u_b^T - u_b u_a^T above its diagonal, F = R (R - 1) / 2: <phi, theta> = u_a^T Theta u_b for
  any antisymmetric Theta, which can prefer in cycles (general bilinear preference models)."""
  rows, columns = jnp.triu_indices(items.shape[-1], 1)
  outer = items[:, :, None, :, None] * items[:, None, :, None, :]
  return (outer - mirror(outer))[..., rows, columns]
