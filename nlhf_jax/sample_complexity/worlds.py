"""Worlds: distributions of true preferences, with the class that a learner assumes.

All have one prompt, and truths within the class.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import expit
from jaxtyping import Array, Float, PRNGKeyArray

from nlhf_jax.ranges import AtLeastOne, AtLeastTwo, BelowHalf, Finite, Positive
from nlhf_jax.sample_complexity.classes import Preference, PreferenceClass
from nlhf_jax.sample_complexity.linear import (
  difference_features,
  linear,
  logistic,
  product_features,
)
from nlhf_jax.sample_complexity.listed import finite
from nlhf_jax.sample_complexity.setting import mirror
from nlhf_jax.sample_complexity.unstructured import tabular


class World(NamedTuple):
  """A class of preferences, and a function that samples the truth from it."""

  members: PreferenceClass
  draw: Callable[[PRNGKeyArray], Preference]


def anything(actions: AtLeastTwo, ridge: Positive = 1.0) -> World:
  """Independent pairs: the sigmoid of a standard normal each."""
  return World(tabular(ridge), lambda key: random_preferences(key, 1, actions))


def star(actions: AtLeastTwo, lead: BelowHalf = 0.1, ridge: Positive = 1.0) -> World:
  """The first action beats every other one by `lead`; the other pairs are as in `anything`."""
  first = (jnp.arange(actions) == 0).astype(float)
  ahead = first[:, None] - first

  def draw(key):
    return jnp.where(ahead != 0, 0.5 + lead * ahead, random_preferences(key, 1, actions))

  return World(tabular(ridge), draw)


def bilinear(actions: AtLeastTwo, rank: AtLeastTwo = 4, ridge: Positive = 1.0) -> World:
  """P = 1/2 + u_a^T Theta u_b with known items u and an unknown antisymmetric Theta.

  It has `rank` (rank - 1) / 2 parameters and cycles; no pair is more certain than 9 : 1.
  """
  items = jax.random.normal(jax.random.key(0), (1, actions, rank), float)
  features = product_features(items)

  def draw(key):
    payoff = features @ jax.random.normal(key, features.shape[-1:], float)
    return 0.5 + 0.4 * payoff / abs(payoff).max()

  return World(linear(features, ridge), draw)


def bradley_terry(actions: AtLeastTwo, ridge: Positive = 1e-6) -> World:
  """P = sigmoid(r_a - r_b), rewards standard normal and the last one 0."""
  features = difference_features(jnp.eye(actions)[None, :, :-1])

  def draw(key):
    return expit(features @ jax.random.normal(key, (actions - 1,), float))

  return World(logistic(features, ridge), draw)


def listed(actions: AtLeastTwo, count: AtLeastOne = 50, ridge: Positive = 1.0) -> World:
  """One of a known list of `count` preferences as in `anything`."""
  members = random_preferences(jax.random.key(0), count, actions)

  def draw(key):
    return members[jax.random.randint(key, (), 0, count)][None]

  return World(finite(members[:, None], ridge), draw)


def random_preferences(key: PRNGKeyArray, count: int, actions: int) -> Float[Array, 'N K K']:
  """Sigmoids of standard normals, complementary over a pair."""
  upper = jnp.triu(jax.random.normal(key, (count, actions, actions), float), 1)
  return expit(upper - mirror(upper))


def geometric_reference(actions: int, rate: Finite) -> Float[Array, 'K']:
  """A reference, log-probabilities: every action e^-rate times as likely as the one before."""
  return jax.nn.log_softmax(-rate * jnp.arange(actions, dtype=float))
