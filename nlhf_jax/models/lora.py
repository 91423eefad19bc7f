"""Low-rank adapters (arXiv 2106.09685): W + (alpha / rank) A B, of which only A and B are trained.

An adapter's leaves are `lora_a` and `lora_b` beside the kernel they adapt. They may be stacked:
then rows use the adapters in turn, and slots that share the kernel read it once.
"""

import re
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nlhf_jax import trees
from nlhf_jax.models import sharding
from nlhf_jax.models.products import matmul, sum_over_rows
from nlhf_jax.ranges import Count, Positive
from nlhf_jax.structs import Params

TARGETS = ('query', 'key', 'value', 'out', 'gate', 'up', 'down')


class Lora(NamedTuple):
  """`targets` are names of linear layers, adapted in every layer of the decoder."""

  rank: Count
  alpha: Positive
  targets: tuple[str, ...]

  @property
  def scale(self) -> float:
    """The factor of A B."""
    return self.alpha / self.rank


def is_adapter(path: str) -> bool:
  """Whether a parameter belongs to an adapter."""
  return re.search(r'/lora_[ab]$', path) is not None


def initialise(shapes: Params, key: Array) -> Params:
  """New adapters, as PEFT's: A is uniform within +-1 / sqrt(inputs), and B is zero.

  A small program for each shape: one program for all adapters of SmolLM2 compiles for 13 seconds.

  Args:
    shapes: arrays or their shapes, by path; leaves that are no adapters are left out.
    key: samples A; its path makes each adapter another one.
  """
  new = {}
  for path, leaf in trees.flatten(shapes).items():
    if path.endswith('/lora_a'):
      own, bound = jax.random.fold_in(key, zlib.crc32(path.encode())), leaf.shape[-2] ** -0.5
      new[path] = jax.random.uniform(own, leaf.shape, leaf.dtype, -bound, bound)
    elif path.endswith('/lora_b'):
      new[path] = jnp.zeros(leaf.shape, leaf.dtype)
  return sharding.put_parameters(trees.unflatten(new))


def delta(x: Array, a: Array, b: Array, scale: float) -> Array:
  """scale x A B for rows x [N, T, D]; row n uses adapter n mod S of A and B stacked as [S, ...]."""
  if a.ndim == 2:
    return scale * _low_rank(x, a, b)
  grouped = x.reshape(-1, len(a), *x.shape[1:])
  low = jnp.einsum('nstd,sdr->nstr', grouped, a)
  return scale * jnp.einsum('nstr,sre->nste', low, b).reshape(*x.shape[:-1], b.shape[-1])


@jax.custom_vjp
def _low_rank(x, a, b):
  """x A B.

  In JAX's own backward pass, XLA on CPUs transposes x and the gradient, the widest arrays;
  without that a layer of SmolLM2 takes a quarter less time (16 rows of 160 tokens, two cores).
  """
  return matmul(matmul(x, a), b)


def _low_rank_forward(x, a, b):
  low = matmul(x, a)
  return matmul(low, b), (x, low, a, b)


def _low_rank_backward(stored, gradient):
  x, low, a, b = stored
  of_low = matmul(gradient, b, transposed=True)
  return matmul(of_low, a, transposed=True), sum_over_rows(x, of_low), sum_over_rows(low, gradient)


_low_rank.defvjp(_low_rank_forward, _low_rank_backward)


def merge(params: Params, scale: float) -> Params:
  """Parameters without adapters that compute the same."""
  leaves = trees.flatten(params)
  merged = {path: leaf for path, leaf in leaves.items() if not is_adapter(path)}
  for path, a in leaves.items():
    if path.endswith('/lora_a'):
      layer = path.removesuffix('/lora_a')
      kernel = merged[f'{layer}/kernel']
      a, b = (leaf.astype(jnp.float32) for leaf in (a, leaves[f'{layer}/lora_b']))
      merged[f'{layer}/kernel'] = (kernel + scale * (a @ b)).astype(kernel.dtype)
  return trees.unflatten(merged)
