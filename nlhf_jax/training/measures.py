"""What each kind of training logs at every step: (comparison, slot -> scores) -> scalars."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array

from nlhf_jax.structs import Comparison


def of_demonstrations(comparison: Comparison, scores: Mapping) -> dict[str, Array]:
  """Nats a token of the left responses, and their tokens."""
  tokens = jnp.sum(comparison.left.mask)
  return {'nats_per_token': -jnp.sum(scores['policy'].left) / tokens, 'tokens': tokens}


def of_preferences(comparison: Comparison, scores: Mapping) -> dict[str, Array]:
  """Accuracy: how often the network agrees with the majority of the votes; a tie counts half."""
  right = jnp.sign(scores['policy']) * jnp.sign(comparison.payoff)
  tokens = jnp.sum(comparison.left.mask) + jnp.sum(comparison.right.mask)
  return {'accuracy': jnp.mean((1 + right) / 2), 'tokens': tokens}


def of_play(comparison: Comparison, scores: Mapping) -> dict[str, Array]:
  """How the policy (left) fares against its opponent (right), and how far it is from home.

  `win_rate` in win probability; `kl_to_reference` (an unbiased estimate) and `entropy` in nats, the
  first a response, the second a token; `response_length` in tokens.
  """
  left, right = comparison.left, comparison.right
  ratio = jnp.sum(scores['policy'].left - scores['reference'].left, axis=-1)
  tokens = jnp.sum(left.mask)
  return {
    'win_rate': jnp.mean(comparison.payoff) + 0.5,
    'kl_to_reference': jnp.mean(ratio),
    'entropy': jnp.sum(left.entropy) / tokens,
    'response_length': jnp.mean(jnp.sum(left.mask, axis=-1)),
    'tokens': tokens + jnp.sum(right.mask),
  }
