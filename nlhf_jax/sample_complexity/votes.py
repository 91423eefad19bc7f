"""The oracle, and who is compared: votes as counts, which are all that any estimate looks at.

A design gives every pair its share of the comparisons: symmetric over [X, K, K], zero on the
diagonal, with sum over prompts and pairs a < b of at most 1; the rest meets itself and is wasted.
Counts have the same shape; wins[x, a, b] is how often a was preferred to b.
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
  """The design in which every pair of a prompt has a share proportional to its weight."""
  weights = jnp.triu(weights, 1) + jnp.triu(weights, 1).T
  return setting.prompts[:, None, None] * weights / sum_over_pairs(weights)


def uniform_design(setting: Setting) -> Float[Array, 'X K K']:
  """The design in which all pairs meet alike: full coverage."""
  actions = setting.log_reference.shape[-1]
  return design_from_weights(setting, jnp.ones((actions, actions), setting.log_reference.dtype))


def design_around_action(
  setting: Setting, action: ArrayLike, others: ArrayLike
) -> Float[Array, 'X K K']:
  """The design in which pairs without the action weigh `others` to the 1 of pairs with it."""
  actions = setting.log_reference.shape[-1]
  touches = jnp.arange(actions) == action
  weights = jnp.where(touches[:, None] | touches, 1, others)
  return design_from_weights(setting, weights.astype(setting.log_reference.dtype))


def sample_wins(
  key: PRNGKeyArray, preference: Float[Array, 'X K K'], counts: Float[Array, 'X K K']
) -> Float[Array, 'X K K']:
  """The oracle: a prefers its own answer in Binomial(n_ab, P_ab) of n_ab comparisons."""
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
  """Wins of independent comparisons of a design; a million cost what ten cost."""
  shares = outcome_probabilities(preference, design)
  wins = jax.random.multinomial(key, jnp.asarray(comparisons, design.dtype), shares)
  return wins[:-1].reshape(design.shape)


def sample_few_votes(
  key: PRNGKeyArray, preference: Float[Array, 'X K K'], design: Float[Array, 'X K K'], batch: int
) -> Float[Array, 'X K K']:
  """The same, drawn one comparison at a time, which is quicker to compile and right for a few."""
  shares = outcome_probabilities(preference, design)
  drawn = jax.random.choice(key, len(shares), (batch,), p=shares)
  return jnp.zeros_like(shares).at[drawn].add(1)[:-1].reshape(design.shape)


def outcome_probabilities(
  preference: Float[Array, 'X K K'], design: Float[Array, 'X K K']
) -> Float[Array, 'outcomes']:
  """Probabilities that a beats b in a comparison, for all prompts, a and b; then that none does."""
  wins = (design * preference).ravel()
  return jnp.append(wins, jnp.maximum(0, 1 - wins.sum()))


def comparison_counts(wins: Float[Array, 'X K K']) -> Float[Array, 'X K K']:
  """How often each pair met."""
  return wins + mirror(wins)
