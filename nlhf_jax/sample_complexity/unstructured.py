"""The class of all preferences, with one parameter per pair."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from nlhf_jax.sample_complexity.classes import Counts, Preference, PreferenceClass, Weights
from nlhf_jax.sample_complexity.setting import mirror, sum_over_pairs


def tabular(ridge: float = 1.0) -> PreferenceClass:
  """All preferences, estimated with `ridge` additional votes for a tie on each pair.

  The estimate is (wins + ridge / 2) / (n + ridge). With a ridge of 0 it is the fraction of wins,
  and 1/2 for a pair that was never compared. The error is sum (n + ridge) delta^2.
  """

  def estimate(wins):
    met = wins + mirror(wins) + ridge
    return jnp.where(met > 0, (wins + ridge / 2) / jnp.where(met > 0, met, 1), 0.5)

  def error(estimate, counts, member):
    return sum_over_pairs((counts + ridge) * (member - estimate) ** 2).sum()

  def width(estimate, counts, weights):
    return jnp.sqrt(sum_over_pairs(safe_ratio(weights**2, counts + ridge)).sum())

  def bonus(estimate, counts):
    itself = jnp.eye(counts.shape[-1], dtype=bool)
    return jnp.where(itself, 0, 1 / jnp.sqrt(counts + ridge))

  def widest(estimate, counts, candidates):
    # Prompts have no pair in common, so each can be maximised separately.
    return jnp.argmax(sum_over_pairs(safe_ratio(candidates**2, counts[:, None] + ridge)), axis=1)

  def worst(estimate, counts, weights, budget):
    return minimise_within_budget(estimate, counts + ridge, weights, budget)

  def radius(estimate, counts, delta):
    prompts, actions, _ = counts.shape
    seen = sum_over_pairs((counts > 0).astype(counts.dtype)).sum()
    bias = np.sqrt(ridge * prompts * actions * (actions - 1) / 2) / 2
    return (jnp.sqrt(noise_bound(seen, delta)) + bias) ** 2

  def potential(counts):
    return 2 * sum_over_pairs(jnp.log1p(counts / ridge)).sum()

  return PreferenceClass(estimate, error, width, bonus, widest, worst, radius, potential)


def safe_ratio(
  numerator: Float[Array, '...'], denominator: Float[Array, '...']
) -> Float[Array, '...']:
  """numerator / denominator, 0 if the numerator is 0, infinite if only the denominator is."""
  return jnp.where(numerator == 0, 0, numerator / denominator)


def noise_bound(dimensions: Float[Array, ''] | int, delta: float) -> Float[Array, '']:
  """A bound of the squared noise of votes in d `dimensions`, with probability 1 - delta.

  (d + 2 sqrt(d t) + 2 t) / 4 with t = log 1 / delta, as votes are sub-Gaussian with variance 1/4
  (Hsu, Kakade, Zhang 2012, theorem 2.1). Holds for counts that do not depend on the votes.
  """
  t = np.log(1 / delta)
  return (dimensions + 2 * jnp.sqrt(dimensions * t) + 2 * t) / 4


def minimise_within_budget(
  estimate: Preference, precision: Counts, weights: Weights, budget: Float[Array, '']
) -> Preference:
  """argmin of sum w P over sum precision (P - estimate)^2 <= budget and 0 <= P <= 1.

  P - estimate is -s w / precision, cut to valid probabilities; bisection finds s, in which the sum
  is monotone, from below, so that the budget is never exceeded.
  """
  slope = safe_ratio(weights, precision)  # infinite for a pair that was never compared

  def moved(s):
    return jnp.clip(-s * slope, -estimate, 1 - estimate)

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) / 2
    fits = sum_over_pairs(precision * moved(jnp.exp(middle)) ** 2).sum() <= budget
    return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

  # Without the cut this s would use up the budget; with the cut, s is larger.
  uncut = sum_over_pairs(jnp.where(precision > 0, weights * slope, 0)).sum()
  start = jnp.log(budget / jnp.where(uncut > 0, uncut, 1)) / 2
  low, _ = lax.fori_loop(0, 30, halve, (start - 1e-9, start + 30))
  return estimate + moved(jnp.exp(low))
