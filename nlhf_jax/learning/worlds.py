"""Preferences to learn, drawn by a key: [K, K] each, complementary."""

import jax
import jax.numpy as jnp
from jax.scipy.special import expit
from jaxtyping import Array, Float, PRNGKeyArray


def anything(key: PRNGKeyArray, actions: int) -> Float[Array, 'K K']:
  """P = sigmoid of a standard normal for every pair."""
  upper = jnp.triu(jax.random.normal(key, (actions, actions), float), 1)
  return expit(upper - upper.T)


def star(key: PRNGKeyArray, actions: int, lead: float = 0.2) -> Float[Array, 'K K']:
  """The first action beats every other one by `lead`; among those, anything."""
  first = jnp.arange(actions) == 0
  sure = first[:, None].astype(float) - first
  return jnp.where(sure != 0, 0.5 + lead * sure, anything(key, actions))


def skewed(actions: int, rate: float = 0.5) -> Float[Array, 'K']:
  """A reference that plays each action less than the one before: log-probabilities."""
  return jax.nn.log_softmax(-rate * jnp.arange(actions, dtype=float))
