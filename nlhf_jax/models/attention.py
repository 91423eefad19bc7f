"""Attention: one function, and the kernel that fits what is at hand.

The program that XLA makes of the definition takes everything, and is what the others are held to.
Flash kernels never hold the logits [N, H, T, S]: cuDNN's on NVIDIA, splash attention on TPU.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped

from nlhf_jax.models import sharding

LANES = 128  # of a TPU: what sizes are multiples of
MASKED = float(jnp.finfo(jnp.float32).min)  # the logit of what is not seen
QUERY_BLOCK = 64  # that are worth going over fewer keys for
MAX_BLOCK = 512  # of queries, and of keys, that the TPU kernel has at hand at once


class AttentionMask(NamedTuple):
  """What each query sees.

  `visible` says it; `real`, which marks what is no padding, says the same with less: a query sees
  the real tokens up to its own, the last `window` of them where there is one.
  """

  visible: Bool[Array, 'N T T']
  real: Bool[Array, 'N T']
  window: int | None = None


class KeyValues(NamedTuple):
  """Keys and values that lie together, heads first, each for an equal run of R adjoining rows."""

  key: Float[Array, 'M G S C']
  value: Float[Array, 'M G S C']
  visible: Bool[Array, 'M #R #T S']


def attend(
  query: Float[Array, 'N T H C'],
  key: Float[Array, 'N T G C'],
  value: Float[Array, 'N T G C'],
  sight: AttentionMask,
  *,
  scale: float,
  cap: float | None,
) -> Float[Array, 'N T H C']:
  """Each query's mean of the values it sees, weighted by softmax(scale q.k), each head in a group.

  `cap` bounds logits softly, cap tanh(logit / cap), as Gemma 2 does. What queries at padding get is
  finite, and means nothing.
  """
  kernel = KERNELS[choose_kernel(platform(), query, cap)]
  return kernel(query, key, value, sight, scale=scale, cap=cap)


def attend_cached(
  query: Float[Array, 'N T H C'], parts: Sequence[KeyValues], *, scale: float, cap: float | None
) -> Float[Array, 'N T H C']:
  """`attend` for a few queries a row over all that the parts hold; row n sees row n // R of each.

  Each part is attended to on its own, so that what rows share is read once for all of them, and the
  outcomes are weighted with the sums of their exponentials.
  """
  rows, length, heads, size = query.shape

  def of_part(part):
    """(largest logit, sum of exponentials, weighted sum of values), [N, T, H] and [N, T, H, C]."""
    count, groups = part.key.shape[:2]
    grouped = query.reshape(count, rows // count, length, groups, heads // groups, size)
    grouped = jnp.moveaxis(grouped, 3, 1)
    logits = jnp.einsum(
      'mgntrc,mgsc->mgntrs', grouped, part.key, preferred_element_type=jnp.float32
    )
    visible = part.visible[:, None, :, :, None]
    logits = jnp.where(visible, soft_cap(scale * logits, cap), MASKED)
    top = jnp.max(logits, axis=-1)
    weights = jnp.exp(logits - top[..., None])
    mixed = jnp.einsum(
      'mgntrs,mgsc->mgntrc',
      weights.astype(part.value.dtype),
      part.value,
      preferred_element_type=jnp.float32,
    )

    def by_rows(x):
      return jnp.moveaxis(x, 1, 3).reshape(rows, length, heads, *x.shape[5:])

    return by_rows(top), by_rows(jnp.sum(weights, axis=-1)), by_rows(mixed)

  tops, sums, mixed = zip(*map(of_part, parts), strict=True)
  top = jnp.max(jnp.stack(tops), axis=0)
  shares = [jnp.exp(of_part - top) for of_part in tops]
  total = sum(share * part for share, part in zip(shares, sums, strict=True))
  value = sum(share[..., None] * part for share, part in zip(shares, mixed, strict=True))
  return (value / total[..., None]).astype(query.dtype)


def platform() -> str:
  """`tpu`, `cuda` (NVIDIA's from Ampere on), or what else JAX runs on."""
  device = jax.devices()[0]
  if 'cuda' in device.client.platform_version and float(device.compute_capability) >= 8:
    return 'cuda'
  return device.platform


def choose_kernel(platform: str, query: Array, cap: float | None) -> str:
  """The kernel for arrays of these shapes and types: `xla`, `cudnn` or `splash`.

  cuDNN takes 16-bit types, heads of at most 128 in multiples of 8, even lengths and no cap; splash
  attention takes whole sequences from 128 tokens, and heads of a multiple of 128.
  """
  _, length, _, size = query.shape
  if platform == 'cuda' and cap is None and query.dtype in (jnp.bfloat16, jnp.float16):
    even = length % 2 == 0  # or there is no gradient
    return 'cudnn' if even and size % 8 == 0 and size <= 128 else 'xla'
  if platform == 'tpu':
    return 'splash' if length >= LANES and size % LANES == 0 else 'xla'
  return 'xla'


def attend_xla(query, key, value, sight, *, scale, cap):
  """`attend` by its definition, some queries at a time, each time over the keys up to the last.

  Means are divided by the sums of their weights, and not the weights before: a backward pass goes
  over all queries and keys once less.
  """
  rows, length, heads, size = query.shape
  groups = key.shape[2]
  query = jnp.moveaxis(query.reshape(rows, length, groups, heads // groups, size), 1, 3)
  key, value = (jnp.swapaxes(x, 1, 2) for x in (key, value))

  def of_block(start, stop):
    logits = jnp.einsum(
      'ngrtc,ngsc->ngrts',
      query[:, :, :, start:stop],
      key[:, :, :stop],
      preferred_element_type=jnp.float32,
    )
    visible = sight.visible[:, None, None, start:stop, :stop]
    logits = jnp.where(visible, soft_cap(scale * logits, cap), MASKED)
    top = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - top)
    mixed = jnp.einsum(
      'ngrts,ngsc->ngrtc',
      weights.astype(value.dtype),
      value[:, :, :stop],
      preferred_element_type=jnp.float32,
    )
    return mixed / jnp.sum(weights, axis=-1, keepdims=True)

  count = min(max(length // QUERY_BLOCK, 1), 4)
  ends = [length * number // count for number in range(count + 1)]
  mixed = jnp.concatenate([of_block(*ends[n : n + 2]) for n in range(count)], axis=3)
  return jnp.moveaxis(mixed, 3, 1).reshape(rows, length, heads, size).astype(value.dtype)


def attend_cudnn(query, key, value, sight, *, scale, cap):
  """`attend` by cuDNN's flash attention."""
  del cap  # there is none, or another kernel fits
  return jax.nn.dot_product_attention(
    query, key, value, mask=sight.visible[:, None], scale=scale, implementation='cudnn'
  )


def soft_cap(logits: Array, cap: float | None) -> Array:
  """The logits, softly bounded."""
  return logits if cap is None else cap * jnp.tanh(logits / cap)


def attend_splash(query, key, value, sight, *, scale, cap, interpret=False):
  """`attend` by splash attention, each device for its own rows and heads.

  `interpret` runs the kernel without a TPU, slowly.
  """
  by_rows = partial(_splash, window=sight.window, scale=scale, cap=cap, interpret=interpret)
  if sharding.has_mesh():  # XLA cannot split the kernel by itself
    heads = sharding.spec((sharding.ROW_AXES, None, 'tensor', None), key.shape)
    rows = sharding.spec((sharding.ROW_AXES, None), sight.real.shape)
    by_rows = jax.shard_map(
      by_rows, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )
  return by_rows(query, key, value, sight.real)


def _splash(query, key, value, real, *, window, scale, cap, interpret):
  # Only TPUs need them, and they take a quarter of a second to import.
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  length = query.shape[1]
  padded = length + -length % LANES
  if window is not None and window < length:
    # The kernel counts places, and a window counts real tokens: they go side by side.
    order = jnp.argsort(real, axis=1, stable=True)
    query, key, value, real = (_ordered(x, order) for x in (query, key, value, real))
    mask = masks.LocalMask((padded, padded), (window - 1, 0), 0)
  else:
    order = None
    mask = masks.CausalMask((padded, padded))

  def filled(x):
    """[N, T, ...], with padding up to a length that the kernel takes."""
    return jnp.pad(x, ((0, 0), (0, padded - length)) + ((0, 0),) * (x.ndim - 2))

  def by_heads(x):
    return jnp.swapaxes(filled(x), 1, 2)

  block = math.gcd(padded, MAX_BLOCK)
  kernel = splash.make_splash_mha(
    masks.MultiHeadMask([mask] * query.shape[2]),
    block_sizes=splash.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_kv_dkv_compute=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    head_shards=1,
    q_seq_shards=1,
    attn_logits_soft_cap=cap,
    interpret=interpret,
  )
  # Real tokens see real ones, and padding sees padding: a row that saw nothing would be no number.
  segments = filled(real.astype(jnp.int32))
  scaled = (scale * query).astype(query.dtype)
  mixed = jax.vmap(kernel)(
    by_heads(scaled), by_heads(key), by_heads(value), splash.SegmentIds(segments, segments)
  )
  mixed = jnp.swapaxes(mixed, 1, 2)[:, :length]
  return mixed if order is None else _ordered(mixed, jnp.argsort(order, axis=1))


def _ordered(x: Shaped[Array, 'N T *rest'], order: Array) -> Shaped[Array, 'N T *rest']:
  return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), axis=1)


KERNELS = {
  'xla': attend_xla,
  'cudnn': attend_cudnn,
  'splash': attend_splash,
}
