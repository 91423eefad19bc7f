"""The class of a finite list of N preferences."""

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy
from jaxtyping import Array, Float

from nlhf_jax.sample_complexity.classes import PreferenceClass
from nlhf_jax.sample_complexity.setting import sum_over_pairs


def finite(members: Float[Array, 'N X K K'], constant: float = 1.0) -> PreferenceClass:
  """The estimate is the member of largest likelihood; suprema are maxima over all members.

  The error is constant + sum n delta^2, as in the paper.

  Args:
    members: the preferences.
    constant: added to the error, so that widths are finite without data.
  """

  def estimate(wins):
    likelihood = xlogy(wins, members).sum(axis=(1, 2, 3))
    return members[jnp.argmax(likelihood)]

  def error(estimate, counts, member):
    return constant + sum_over_pairs(counts * (member - estimate) ** 2).sum()

  def errors(estimate, counts):
    return constant + sum_over_pairs(counts * (members - estimate) ** 2).sum(axis=1)

  def ratios(estimate, counts, sums):
    """|sums| over the root of the error of each member, [N, *B] -> [N, *B]; 0 for the estimate."""
    below = errors(estimate, counts).reshape(-1, *[1] * (sums.ndim - 1))
    return jnp.where(sums == 0, 0, abs(sums) / jnp.sqrt(below))

  def width(estimate, counts, weights):
    sums = sum_over_pairs(weights * (members - estimate)).sum(axis=1)
    return ratios(estimate, counts, sums).max()

  def bonus(estimate, counts):
    return ratios(estimate, counts, members - estimate).max(axis=0)

  def widest(estimate, counts, candidates):
    # For one member the sum is linear in the choices: all upwards, or all downwards.
    sums = sum_over_pairs(candidates * (members - estimate)[:, :, None])  # [N, X, J]
    choices = jnp.concatenate([jnp.argmax(sums, axis=2), jnp.argmin(sums, axis=2)])
    sums = jnp.concatenate([sums, sums])
    reached = jnp.take_along_axis(sums, choices[:, :, None], axis=2).sum(axis=(1, 2))
    reached = ratios(estimate, counts, reached.reshape(2, -1).T).T.ravel()
    return choices[jnp.argmax(reached)]

  def worst(estimate, counts, weights, budget):
    sums = sum_over_pairs(weights * members).sum(axis=1)
    return members[jnp.argmin(jnp.where(errors(estimate, counts) <= budget, sums, jnp.inf))]

  def radius(estimate, counts, delta):
    # Of Hellinger distances, sum H^2 <= log N / delta; and delta^2 <= 2 H^2 for each vote.
    return jnp.asarray(constant + 2 * np.log(len(members) / delta))

  def potential(counts):
    apart = members[:, None] - members
    gained = jnp.log1p(sum_over_pairs(counts * apart**2).sum(axis=2) / constant)
    return gained.sum()  # over ordered pairs of members: twice every pair, whichever leads

  return PreferenceClass(estimate, error, width, bonus, widest, worst, radius, potential)
