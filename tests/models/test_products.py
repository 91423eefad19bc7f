"""Products of activations and weights, in both types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.models.products import matmul


def sides(dtype):
  keys = jax.random.split(jax.random.key(0))
  return (
    jax.random.normal(keys[0], (2, 5, 8), dtype),
    jax.random.normal(keys[1], (8, 6), dtype),
  )


@pytest.mark.parametrize(('dtype', 'error'), [(jnp.float32, 1e-6), (jnp.bfloat16, 0.02)])
def test_products_and_gradients_equal_those_in_double_precision(dtype, error):
  x, w = sides(dtype)
  value, pull_back = jax.vjp(matmul, x, w)
  assert value.dtype == dtype
  of_x, of_w = pull_back(jnp.ones_like(value))
  assert of_x.dtype == of_w.dtype == dtype
  x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
  ones = np.ones((2, 5, 6))
  for found, right in (
    (value, x @ w),
    (of_x, ones @ w.T),
    (of_w, x.reshape(-1, 8).T @ ones.reshape(-1, 6)),
  ):
    np.testing.assert_allclose(np.asarray(found, np.float64), right, rtol=error, atol=error)


def test_logits_of_bfloat16_are_not_rounded_to_it():
  x, w = sides(jnp.bfloat16)
  logits = matmul(x, w, jnp.float32)
  right = np.asarray(x, np.float32) @ np.asarray(w, np.float32)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, right, rtol=1e-5, atol=1e-5)


def test_cpus_multiply_bfloat16_into_float32():
  """Otherwise they multiply no faster than in float32."""
  x, w = sides(jnp.bfloat16)
  gradients = jax.grad(lambda x, w: matmul(x, w).astype(jnp.float32).sum(), argnums=(0, 1))
  text = jax.jit(gradients).lower(x, w).as_text()
  products = [line for line in text.splitlines() if 'dot_general' in line]
  assert len(products) == 2  # the value itself is not needed
  assert all(line.split('->')[-1].strip().endswith('xf32>') for line in products)
