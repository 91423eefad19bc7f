"""Masks over padded sequences."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def through_first(stop: Bool[Array, '*rows T']) -> Bool[Array, '*rows T']:
  """True up to and including the first True; all True where there is none."""
  return jnp.cumsum(stop, axis=-1) - stop == 0


def positions(mask: Bool[Array, '*rows S']) -> Int[Array, '*rows S']:
  """Positions that count only real tokens, so that padding does not move them."""
  return jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
