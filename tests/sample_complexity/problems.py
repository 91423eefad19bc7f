"""Small problems that the tests share: two prompts, four actions, three features."""

import jax.numpy as jnp
import numpy as np

from nlhf_jax.games import matrices
from nlhf_jax.sample_complexity.linear import linear, logistic, product_features
from nlhf_jax.sample_complexity.listed import finite
from nlhf_jax.sample_complexity.setting import Setting
from nlhf_jax.sample_complexity.unstructured import tabular

X, K, F, N = 2, 4, 3, 6


def contexts(tau=0.1, seed=0):
  random = np.random.default_rng(seed)
  prompts = jnp.asarray(random.dirichlet(np.ones(X)))
  return Setting(prompts, log_policies(seed + 100), jnp.asarray(tau))


def log_policies(seed, *batch):
  return jnp.log(np.random.default_rng(seed).dirichlet(np.ones(K), (*batch, X)))


def corner(*actions):
  """The policy that plays one action on each prompt."""
  return jnp.where(jnp.arange(K) == jnp.array(actions)[:, None], 0.0, -jnp.inf)


def features():
  """Features of a bilinear preference: products of three-dimensional items."""
  return product_features(jnp.asarray(np.random.default_rng(1).normal(size=(X, K, F))))


def preferences(seed, *batch):
  return 0.5 + jnp.asarray(matrices.random(K, seed, (*batch, X)))


def listed():
  return preferences(7, N)


def classes():
  """Every class, by its name."""
  return {
    'tabular': tabular(0.7),
    'linear': linear(features(), 0.7, 0.5),
    'every pair': linear(every_pair(X, K), 0.7),
    'logistic': logistic(features(), 0.7),
    'finite': finite(listed(), 0.7),
  }


def truth(name):
  """A member of the class."""
  theta = jnp.asarray(np.random.default_rng(2).normal(size=F))
  if name == 'linear':
    payoff = features() @ theta
    return 0.5 + 0.4 * payoff / abs(payoff).max()
  if name == 'logistic':
    return 1 / (1 + jnp.exp(-(features() @ theta) / 3))
  if name == 'finite':
    return listed()[2]
  return preferences(3)


def some_counts(seed=4, most=40):
  """Integer counts, with a pair that was never compared."""
  counts = np.triu(np.random.default_rng(seed).integers(1, most, (X, K, K)), 1).astype(float)
  counts[0, 1, 2] = 0
  return jnp.asarray(counts + counts.swapaxes(1, 2))


def rival(name):
  """A member that is not the estimate."""
  return listed()[4] if name == 'finite' else truth(name)


def every_pair(prompts, actions):
  """A feature for each pair of each prompt, which makes `linear` the class of all preferences."""
  rows, columns = np.triu_indices(actions, 1)
  pairs = np.zeros((actions, actions, len(rows)))
  pairs[rows, columns, np.arange(len(rows))] = 1
  pairs = pairs - pairs.swapaxes(0, 1)
  blocks = np.einsum('xy,abf->xabyf', np.eye(prompts), pairs)
  return jnp.asarray(blocks.reshape(prompts, actions, actions, -1))
