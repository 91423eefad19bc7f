"""A decoder as small as can be, with parameters that are quick to make and in no way special."""

import jax
import numpy as np

from nlhf_jax.models.transformer import Architecture, make_decoder

WIDTH = 8


def decoder(vocabulary):
  return make_decoder(
    Architecture(vocabulary, WIDTH, layers=1, heads=2, key_heads=1, head_size=4, hidden=16)
  )


def parameters(decoder, seed):
  """Normal ones from NumPy: the decoder's own start takes longer to compile than a test to run."""
  random = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: random.normal(size=leaf.shape, scale=0.5).astype(leaf.dtype),
    jax.eval_shape(decoder.init, jax.random.key(0)),
  )
