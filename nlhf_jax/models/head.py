"""The last linear layer of a decoder on a mesh: log-probabilities in chunks of each device's rows.

Each device gathers the layer once, in the type of the computation, and adds up the gradient of all
chunks in float32. The sum is reduced over devices once, whatever the number of chunks: in JAX's own
backward pass of a loop, every chunk reduces the gradient of the whole layer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from nlhf_jax.models import sharding
from nlhf_jax.models.products import matmul, multiply


class Head(NamedTuple):
  """How logits follow from hidden states h [N, T, D]: `finish(h W)`.

  `path` is that of W [D, V] among the parameters or, if `transposed`, of W^T. Products of 16-bit
  types are of type `product`; None is that of h. `finish` takes and returns float32.
  """

  path: str
  transposed: bool
  product: Any
  finish: Callable[[Array], Array]

  def kernel(self, params: Any) -> Array:
    """W, or W^T."""
    for name in self.path.split('/'):
      params = params[name]
    return params


def pick_log_probs(logits: Float[Array, 'N T V'], tokens: Int[Array, 'N T']) -> Float[Array, 'N T']:
  """log softmax of the logits at the tokens."""
  chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)


def split_columns(x: Array, size: int) -> Array:
  """[N, T, ...] as [chunks, N, size, ...], padded with zeros."""
  padding = ((0, 0), (0, -x.shape[1] % size)) + ((0, 0),) * (x.ndim - 2)
  chunks = jnp.pad(x, padding).reshape(len(x), -1, size, *x.shape[2:])
  return jnp.swapaxes(chunks, 0, 1)


def join_columns(chunks: Array, length: int) -> Array:
  """[N, length, ...] of the chunks [chunks, N, size, ...], without the padding."""
  rows = jnp.swapaxes(chunks, 0, 1)
  return rows.reshape(len(rows), -1, *chunks.shape[3:])[:, :length]


def sharded_log_probs(
  head: Head,
  kernel: Array,
  hidden: Float[Array, 'N T D'],
  tokens: Int[Array, 'N T'],
  size: int,
) -> Float[Array, 'N T']:
  """log pi of the tokens, in nats, with logits of `size` columns of a device's rows at once.

  Args:
    head: the layer.
    kernel: W or W^T, split as the table of `sharding` says.
    hidden: the states that predict the tokens; N is a multiple of `sharding.example_shards`.
    tokens: one for each state.
    size: columns of a chunk.
  """
  rows = PartitionSpec(sharding.ROW_AXES)
  axes, sizes = sharding.parameter_spec(head.path, kernel.shape), sharding.axis_sizes()
  part = PartitionSpec(*(axis if axis and sizes[axis] > 1 else None for axis in axes))
  split = partial(jax.shard_map, check_vma=False)
  forward = split(partial(_forward, head, size, part), in_specs=(part, rows, rows), out_specs=rows)
  backward = split(
    partial(_backward, head, size, part),
    in_specs=(part, rows, rows, rows),
    out_specs=(part, rows),
  )

  @jax.custom_vjp
  def log_probs(kernel, hidden, tokens):
    return forward(kernel, hidden, tokens)

  log_probs.defvjp(
    lambda *inputs: (forward(*inputs), inputs),
    lambda inputs, gradient: (*backward(*inputs, gradient), None),
  )
  return log_probs(kernel, hidden, tokens)


# --- On one device, which has some rows and, with tensor parallelism, a part of the vocabulary ---


def _forward(head, size, part, kernel, hidden, tokens):
  kernel = _gather(part, kernel.astype(hidden.dtype))

  def one_chunk(chunk):
    hidden, tokens = chunk
    return _pick(part, head.finish(_multiply(head, hidden, kernel)), tokens)[0]

  chunks = split_columns(hidden, size), split_columns(tokens, size)
  return join_columns(lax.map(one_chunk, chunks), tokens.shape[1])


def _backward(head, size, part, kernel, hidden, tokens, gradient):
  dtype, kernel = kernel.dtype, _gather(part, kernel.astype(hidden.dtype))

  def one_chunk(total, chunk):
    hidden, tokens, gradient = chunk
    logits, pull = jax.vjp(head.finish, _multiply(head, hidden, kernel))
    (of_products,) = pull(gradient[..., None] * _pick(part, logits, tokens)[1])
    of_products = of_products.astype(hidden.dtype)
    sides = [x.reshape(-1, x.shape[-1]) for x in (hidden, of_products)]
    total += multiply(*(sides[::-1] if head.transposed else sides), (0, 0), jnp.float32)
    axes = of_products.ndim - 1, int(not head.transposed)
    return total, _over_vocabulary(
      lax.psum, part, multiply(of_products, kernel, axes, hidden.dtype)
    )

  chunks = [split_columns(x, size) for x in (hidden, tokens, gradient)]
  total, of_hidden = lax.scan(one_chunk, jnp.zeros_like(kernel, jnp.float32), chunks)
  return _reduce(part, total).astype(dtype), join_columns(of_hidden, hidden.shape[1])


def _multiply(head, hidden, kernel):
  products = matmul(hidden, kernel, head.product, head.transposed)
  return products.astype(jnp.float32)


def _pick(part, logits, tokens):
  """log softmax of the logits at the tokens, and its derivative with respect to the logits."""
  top = _over_vocabulary(lax.pmax, part, jnp.max(logits, axis=-1, keepdims=True))
  weights = jnp.exp(logits - top)
  first = lax.axis_index('tensor') * logits.shape[-1] if 'tensor' in part else 0
  here = first + jnp.arange(logits.shape[-1]) == tokens[..., None]
  sums = jnp.stack([jnp.sum(weights, axis=-1), jnp.sum(jnp.where(here, logits, 0.0), axis=-1)])
  total, chosen = _over_vocabulary(lax.psum, part, sums)
  return chosen - top[..., 0] - jnp.log(total), here - weights / total[..., None]


def _over_vocabulary(reduce, part, x):
  return reduce(x, 'tensor') if 'tensor' in part else x


def _gather(part, kernel):
  """The kernel with all of its inputs, from the part of this device."""
  for number, axis in enumerate(part):
    if axis == 'fsdp':
      kernel = lax.all_gather(kernel, axis, axis=number, tiled=True)
  return kernel


def _reduce(part, total):
  """The part of this device of the sum of `total` over the devices with other rows."""
  for number, axis in enumerate(part):
    if axis == 'fsdp':
      total = lax.psum_scatter(total, axis, scatter_dimension=number, tiled=True)
  sizes = sharding.axis_sizes()
  others = tuple(axis for axis in sharding.ROW_AXES if axis not in part and sizes[axis] > 1)
  return lax.psum(total, others) if others else total
