"""A tiny decoder, and a jit that compiles quickly: tests run each program once."""

from functools import partial

import jax
import numpy as np

from nlhf_jax.models import architectures
from nlhf_jax.models.transformer import make_decoder

WIDTH = 8

# Optimisation takes longer than it saves in one run.
jit = partial(
  jax.jit,
  compiler_options={
    'xla_backend_optimization_level': 0,
    'xla_cpu_use_fusion_emitters': False,
    'xla_cpu_parallel_codegen_split_count': 1,
  },
)


def decoder(vocabulary):
  return make_decoder(
    architectures.small(
      vocabulary, WIDTH, layers=1, heads=2, key_heads=1, head_size=4, hidden=16, rotary_base=1e4
    )
  )


def parameters(decoder, seed):
  """Random parameters from NumPy; the decoder's own initialisation would have to be compiled."""
  random = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: random.normal(size=leaf.shape, scale=0.5).astype(leaf.dtype),
    jax.eval_shape(decoder.init, jax.random.key(0)),
  )
