"""Products of activations and weights.

XLA on CPUs multiplies matrices of bfloat16 at twice the rate of float32 if the result is float32,
where the processor has instructions for it, but no faster than float32 if the result is bfloat16.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def matmul(
  x: Float[Array, '*N D'],
  w: Float[Array | np.ndarray, '...'],
  dtype: Any = None,
  transposed: bool = False,
) -> Array:
  """x W, [*N, E], of this dtype, or else that of x; sums of bfloat16 are in float32.

  `w` is W [D, E] or, if `transposed`, W^T: XLA on CPUs would convert `w.T` to float32.
  """
  if x.dtype.itemsize >= 4:
    return x @ (w.T if transposed else w)
  return _matmul(x, w, jnp.dtype(dtype or x.dtype), int(transposed))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _matmul(x, w, dtype, axis):
  return multiply(x, w, (x.ndim - 1, axis), dtype)


def _forward(x, w, dtype, axis):
  return _matmul(x, w, dtype, axis), (x, w)


def _backward(dtype, axis, stored, gradient):
  del dtype
  x, w = stored
  gradient = gradient.astype(x.dtype)
  sides = (gradient, x) if axis else (x, gradient)
  return multiply(gradient, w, (gradient.ndim - 1, 1 - axis), x.dtype), sum_over_rows(*sides)


_matmul.defvjp(_forward, _backward)


def sum_over_rows(x: Float[Array, '*N D'], y: Float[Array, '*N E']) -> Float[Array, 'D E']:
  """x^T y, summed over all rows."""
  x, y = (side.reshape(-1, side.shape[-1]) for side in (x, y))
  return multiply(x, y, (0, 0), x.dtype)


def multiply(x: Array, y: Array, axes: tuple[int, int], dtype: Any) -> Array:
  """The product of matrices over one axis of each, of this dtype."""
  numbers = (((axes[0],), (axes[1],)), ((), ()))
  if x.dtype.itemsize >= 4:
    return lax.dot_general(x, y, numbers)

  def in_float32(x, y):
    product = lax.dot_general(x, y, numbers, preferred_element_type=jnp.float32)
    return product.astype(dtype)

  def direct(x, y):
    return lax.dot_general(x, y, numbers, preferred_element_type=dtype)

  return lax.platform_dependent(x, y, cpu=in_float32, default=direct)
