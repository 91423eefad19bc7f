"""Designs, which distribute comparisons over pairs, and sampled votes as counts.

A design has the fraction of comparisons of every pair: symmetric over [X, K, K], zero on the
diagonal, with a sum over prompts and pairs a < b of at most 1; the rest are comparisons of an
action with itself. Counts have the same shape; wins[x, a, b] is how often a was preferred to b.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from nlhf_jax.sample_complexity.setting import Setting, mirror, sum_over_pairs


def design_from_policies(
  setting: Setting, log_p: Float[Array, 'X K'], log_q: Float[Array, 'X K']
) -> Float[Array, 'X K K']:
  """The design in which the first response comes from p, and the second from q."""
  meetings = jnp.exp(log_p)[:, :, None] * jnp.exp(log_q)[:, None, :]
  both = setting.prompts[:, None, None] * (meetings + mirror(meetings))
  return both * (1 - jnp.eye(both.shape[-1], dtype=both.dtype))


def design_from_weights(setting: Setting, weights: Float[Array, 'K K']) -> Float[Array, 'X K K']:
  """The design in which every pair of a prompt is compared in proportion to its weight."""
  weights = jnp.triu(weights, 1) + jnp.triu(weights, 1).T
  return setting.prompts[:, None, None] * weights / sum_over_pairs(weights)


def uniform_design(setting: Setting) -> Float[Array, 'X K K']:
  """The design in which all pairs are compared equally often."""
  actions = setting.log_reference.shape[-1]
  return design_from_weights(setting, jnp.ones((actions, actions), setting.log_reference.dtype))


def design_around_action(
  setting: Setting, action: ArrayLike, others: ArrayLike
) -> Float[Array, 'X K K']:
  """The design with weight 1 for pairs that contain the action, and `others` for all others."""
  actions = setting.log_reference.shape[-1]
  touches = jnp.arange(actions) == action
  weights = jnp.where(touches[:, None] | touches, 1, others)
  return design_from_weights(setting, weights.astype(setting.log_reference.dtype))


def sample_wins(
  key: PRNGKeyArray, preference: Float[Array, 'X K K'], counts: Float[Array, 'X K K']
) -> Float[Array, 'X K K']:
  """Wins from given counts: wins_ab ~ Binomial(n_ab, P_ab) in n_ab comparisons."""
  rows, columns = jnp.triu_indices(counts.shape[-1], 1)
  met = counts[:, rows, columns]
  won = jax.random.binomial(key, met, preference[:, rows, columns])
  wins = jnp.zeros_like(counts).at[:, rows, columns].set(won)
  return wins.at[:, columns, rows].set(met - won)


def sample_votes(
  key: PRNGKeyArray,
  preference: Float[Array, 'X K K'],
  design: Float[Array, 'X K K'],
  comparisons: ArrayLike,
) -> Float[Array, 'X K K']:
  """Wins of independent comparisons of a design; the cost does not depend on their number."""
  probabilities = outcome_probabilities(preference, design)
  wins = jax.random.multinomial(key, jnp.asarray(comparisons, design.dtype), probabilities)
  return wins[:-1].reshape(design.shape)


def sample_few_votes(
  key: PRNGKeyArray, preference: Float[Array, 'X K K'], design: Float[Array, 'X K K'], batch: int
) -> Float[Array, 'X K K']:
  """`sample_votes` one comparison at a time, which compiles faster and suits small numbers."""
  probabilities = outcome_probabilities(preference, design)
  drawn = jax.random.choice(key, len(probabilities), (batch,), p=probabilities)
  return jnp.zeros_like(probabilities).at[drawn].add(1)[:-1].reshape(design.shape)


def outcome_probabilities(
  preference: Float[Array, 'X K K'], design: Float[Array, 'X K K']
) -> Float[Array, 'outcomes']:
  """Probabilities that a beats b in a comparison, for all prompts, a and b; then of no vote."""
  wins = (design * preference).ravel()
  return jnp.append(wins, jnp.maximum(0, 1 - wins.sum()))


def comparison_counts(wins: Float[Array, 'X K K']) -> Float[Array, 'X K K']:
  """How often each pair was compared."""
  return wins + mirror(wins)
