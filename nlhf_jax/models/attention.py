"""Attention: one function, whatever computes it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attend(
  query: Float[Array, 'N T H C'],
  key: Float[Array, 'N S G C'],
  value: Float[Array, 'N S G C'],
  visible: Bool[Array, 'N T S'],
  *,
  scale: float,
  cap: float | None,
) -> Float[Array, 'N T H C']:
  """Each query's mean of the values it sees, weighted by softmax(scale q.k), each head in a group.

  `cap` bounds logits softly, cap tanh(logit / cap), as Gemma 2 does.
  """
  if cap is None:
    return jax.nn.dot_product_attention(query, key, value, mask=visible[:, None], scale=scale)
  rows, length, heads, size = query.shape
  groups = key.shape[2]
  grouped = query.reshape(rows, length, groups, heads // groups, size)
  logits = jnp.einsum('ntghc,nsgc->nghts', grouped, key, preferred_element_type=jnp.float32)
  logits = cap * jnp.tanh(scale * logits / cap)
  least = jnp.finfo(jnp.float32).min
  weights = jax.nn.softmax(jnp.where(visible[:, None, None], logits, least), axis=-1)
  mixed = jnp.einsum('nghts,nsgc->ntghc', weights.astype(value.dtype), value)
  return mixed.reshape(rows, length, heads, size)
