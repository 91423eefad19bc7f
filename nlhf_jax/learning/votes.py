"""The oracle, and who is compared: votes as counts, which are all that any estimate looks at.

A design gives every pair its share of the comparisons: symmetric over [X, K, K], zero on the
diagonal, with sum over prompts and pairs a < b of at most 1; the rest meets itself and is wasted.
Counts are whole numbers of the same shape; wins[x, a, b] is how often a was preferred to b.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from nlhf_jax.learning.setting import Setting, mirror, over_pairs


def sampled_from(
  setting: Setting, log_p: Float[Array, 'X K'], log_q: Float[Array, 'X K']
) -> Float[Array, 'X K K']:
  """The design in which the first response comes from p, and the second from q."""
  meetings = jnp.exp(log_p)[:, :, None] * jnp.exp(log_q)[:, None, :]
  both = setting.prompts[:, None, None] * (meetings + mirror(meetings))
  return both * (1 - jnp.eye(both.shape[-1], dtype=both.dtype))


def weighed(setting: Setting, weights: Float[Array, 'K K']) -> Float[Array, 'X K K']:
  """The design in which every pair of a prompt has a share proportional to its weight."""
  weights = jnp.triu(weights, 1) + jnp.triu(weights, 1).T
  return setting.prompts[:, None, None] * weights / over_pairs(weights)


def evenly(setting: Setting) -> Float[Array, 'X K K']:
  """The design in which all pairs meet alike: full coverage."""
  actions = setting.log_reference.shape[-1]
  return weighed(setting, jnp.ones((actions, actions), setting.log_reference.dtype))


def around(setting: Setting, action: int, others: ArrayLike) -> Float[Array, 'X K K']:
  """The design in which pairs without the action weigh `others` to the 1 of pairs with it."""
  actions = setting.log_reference.shape[-1]
  touches = jnp.arange(actions) == action
  weights = jnp.where(touches[:, None] | touches, 1, others)
  return weighed(setting, weights.astype(setting.log_reference.dtype))


def meet(
  key: PRNGKeyArray, design: Float[Array, 'X K K'], comparisons: ArrayLike
) -> Float[Array, 'X K K']:
  """Counts of a number of independent comparisons; their number costs nothing."""
  rows, columns = jnp.triu_indices(design.shape[-1], 1)
  shares = design[:, rows, columns]
  shares = jnp.append(shares.ravel(), jnp.maximum(0, 1 - shares.sum()))
  counts = jax.random.multinomial(key, jnp.asarray(comparisons, design.dtype), shares)
  return symmetric(counts[:-1].reshape(len(design), -1), design.shape[-1])


def vote(
  key: PRNGKeyArray, preference: Float[Array, 'X K K'], counts: Float[Array, 'X K K']
) -> Float[Array, 'X K K']:
  """The oracle: a prefers its own answer in Binomial(n_ab, P_ab) of n_ab comparisons."""
  rows, columns = jnp.triu_indices(counts.shape[-1], 1)
  met = counts[:, rows, columns]
  won = jax.random.binomial(key, met, preference[:, rows, columns])
  wins = jnp.zeros_like(counts).at[:, rows, columns].set(won)
  return wins.at[:, columns, rows].set(met - won)


def comparisons(wins: Float[Array, 'X K K']) -> Float[Array, 'X K K']:
  """How often each pair met."""
  return wins + mirror(wins)


def symmetric(pairs: Float[Array, 'X D'], actions: int) -> Float[Array, 'X K K']:
  """Matrices from their entries above the diagonal, row by row; zero on the diagonal."""
  rows, columns = jnp.triu_indices(actions, 1)
  upper = jnp.zeros((len(pairs), actions, actions), pairs.dtype).at[:, rows, columns].set(pairs)
  return upper + mirror(upper)
