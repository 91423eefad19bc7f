"""What each kind of training logs at every step: (comparison, slot -> scores) -> scalars.

The comparison is the whole one; the scores are of what the algorithm selects of it.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array

from nlhf_jax.algorithms.algorithm import LEFT, Algorithm, needs_judge
from nlhf_jax.structs import Comparison
from nlhf_jax.training.update import Measure


def demonstration_metrics(comparison: Comparison, scores: Mapping) -> dict[str, Array]:
  """Nats a token of the left responses, and their tokens."""
  tokens = jnp.sum(comparison.left.mask)
  return {'nats_per_token': -jnp.sum(scores['policy'].left) / tokens, 'tokens': tokens}


def preference_metrics(comparison: Comparison, scores: Mapping) -> dict[str, Array]:
  """Accuracy: how often the network agrees with the majority of the votes; a tie counts half."""
  return _accuracy(comparison, scores['policy'])


def reward_metrics(comparison: Comparison, scores: Mapping) -> dict[str, Array]:
  """The same of a reward network."""
  left, right = scores['policy']
  return _accuracy(comparison, left[:, :, None, 0] - right[:, None, :, 0])


def _accuracy(comparison, said):
  right = jnp.sign(said) * jnp.sign(comparison.payoff)
  tokens = jnp.sum(comparison.left.mask) + jnp.sum(comparison.right.mask)
  return {'accuracy': jnp.mean((1 + right) / 2), 'tokens': tokens}


def make_rollout_metrics(algorithm: Algorithm) -> Measure:
  """How the left responses fare against the right ones, and what they are like.

  `payoff`, where a judge compared two sides, in its unit, over the pairs that have one; `entropy`
  in nats a token, of what was sampled; `response_length` in tokens.
  """

  def measure(comparison, scores):
    del scores
    left, right = comparison.left, comparison.right
    tokens = jnp.sum(left.mask)
    values = {'response_length': jnp.mean(jnp.sum(left.mask, axis=-1)), 'tokens': tokens}
    if left.entropy is not None:
      values['entropy'] = jnp.sum(left.entropy) / tokens
    if algorithm.right not in (None, LEFT):
      values['tokens'] += jnp.sum(right.mask)
      if needs_judge(algorithm):
        values['payoff'] = jnp.nanmean(comparison.payoff)
    return values

  return measure
