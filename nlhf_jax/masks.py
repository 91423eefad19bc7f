"""Masks over padded sequences."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def positions(mask: Bool[Array, '*rows S']) -> Int[Array, '*rows S']:
  """The position of each token among the real tokens, so that padding does not shift positions."""
  return jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
