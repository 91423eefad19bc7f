"""Attention by XLA, cuDNN or splash attention, chosen by device, shapes and types.

XLA's program, from the definition, takes all inputs and is the reference for the others. Flash
kernels (cuDNN on NVIDIA, splash attention on TPU) never hold the logits [N, H, T, S].
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from nlhf_jax.models import sharding

LANES = 128  # of a TPU; sizes must be multiples of it
MASKED = float(jnp.finfo(jnp.float32).min)  # the logit of a masked key
QUERY_BLOCK = 64  # smallest block of queries that is worth a product of its own over fewer keys
MAX_BLOCK = 512  # queries, and keys, that the TPU kernel loads at once


class AttentionMask(NamedTuple):
  """The keys that each query attends to, in two equivalent forms.

  `visible` is the mask itself. The flash kernel for TPUs derives it from `real`, which is False at
  padding: a query attends to the real tokens up to its own, the last `window` of them if that is
  not None.
  """

  visible: Bool[Array, 'N T T']
  real: Bool[Array, 'N T']
  window: int | None = None


class KeyValues(NamedTuple):
  """Keys and values of M sequences, each attended to by R consecutive rows of queries."""

  key: Float[Array, 'M G S C']
  value: Float[Array, 'M G S C']
  visible: Bool[Array, 'M #R #T S']


def attend(
  query: Float[Array, 'N T H C'],
  key: Float[Array, 'N T G C'],
  value: Float[Array, 'N T G C'],
  mask: AttentionMask,
  *,
  scale: float,
  cap: float | None,
) -> Float[Array, 'N T H C']:
  """Grouped-query attention: softmax(scale q.k + mask) v.

  `cap` bounds the logits softly, cap tanh(logit / cap), as Gemma 2 does. The result at padding is
  finite but meaningless.
  """
  kernel = KERNELS[choose_kernel(platform(), query, cap)]
  return kernel(query, key, value, mask, scale=scale, cap=cap)


def attend_one_of(
  query: Float[Array, 'N T H C'],
  key: Float[Array, 'N T G C'],
  value: Float[Array, 'N T G C'],
  masks: Sequence[AttentionMask],
  number: Int[Array | np.ndarray, ''],
  *,
  scale: float,
  cap: float | None,
) -> Float[Array, 'N T H C']:
  """`attend` with one of the masks, by its number, which a scan over layers knows only at run time.

  Splash attention is compiled for a window, so each mask has a branch there.
  """
  settings = {'scale': scale, 'cap': cap}
  if len(masks) > 1 and choose_kernel(platform(), query, cap) == 'splash':
    branches = [partial(attend, mask=mask, **settings) for mask in masks]
    return lax.switch(number, branches, query, key, value)
  visible = select([mask.visible for mask in masks], number)
  return attend(query, key, value, masks[0]._replace(visible=visible), **settings)


def select(values: Sequence[Any], number: Int[Array | np.ndarray, '']) -> Any:
  """The value, a tree of arrays, with this number; where there is only one, that one."""
  if len(values) == 1:
    return values[0]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves)[number], *values)


def attend_cached(
  query: Float[Array, 'N T H C'], parts: Sequence[KeyValues], *, scale: float, cap: float | None
) -> Float[Array, 'N T H C']:
  """Attention of a few queries a row to several parts; row n attends to sequence n // R of each.

  Each part is attended to separately, so that a sequence shared by R rows is read once, and the
  results are combined by their sums of exponentials.
  """
  rows, length, heads, size = query.shape

  def attend_part(part):
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
    attended = jnp.einsum(
      'mgntrs,mgsc->mgntrc',
      weights.astype(part.value.dtype),
      part.value,
      preferred_element_type=jnp.float32,
    )

    def flatten(x):
      return jnp.moveaxis(x, 1, 3).reshape(rows, length, heads, *x.shape[5:])

    return flatten(top), flatten(jnp.sum(weights, axis=-1)), flatten(attended)

  tops, sums, attended = zip(*map(attend_part, parts), strict=True)
  top = jnp.max(jnp.stack(tops), axis=0)
  scales = [jnp.exp(part - top) for part in tops]
  total = sum(scale * part for scale, part in zip(scales, sums, strict=True))
  value = sum(scale[..., None] * part for scale, part in zip(scales, attended, strict=True))
  return (value / total[..., None]).astype(query.dtype)


def platform() -> str:
  """`tpu`, `cuda` (NVIDIA, Ampere or newer), or the name of any other device of JAX."""
  device = sharding.devices()[0]
  if 'cuda' in device.client.platform_version and float(device.compute_capability) >= 8:
    return 'cuda'
  return device.platform


def choose_kernel(platform: str, query: Array, cap: float | None) -> str:
  """The kernel for arrays of these shapes and types: `xla`, `cudnn` or `splash`.

  cuDNN takes 16-bit types, head sizes that are multiples of 8 up to 128, even lengths and no cap;
  splash attention takes sequences of 128 tokens or more, and head sizes that are multiples of 128.
  """
  _, length, _, size = query.shape
  if platform == 'cuda' and cap is None and query.dtype in (jnp.bfloat16, jnp.float16):
    even = length % 2 == 0  # odd lengths have no gradient
    return 'cudnn' if even and size % 8 == 0 and size <= 128 else 'xla'
  if platform == 'tpu':
    return 'splash' if length >= LANES and size % LANES == 0 else 'xla'
  return 'xla'


def attend_xla(query, key, value, mask, *, scale, cap):
  """`attend` by its definition, in blocks of queries, each over the keys up to its last query.

  The result is divided by the sum of the exponentials, in place of each weight: this saves the
  backward pass one pass over all queries and keys.
  """
  rows, length, heads, size = query.shape
  groups = key.shape[2]
  query = jnp.moveaxis(query.reshape(rows, length, groups, heads // groups, size), 1, 3)
  key, value = (jnp.swapaxes(x, 1, 2) for x in (key, value))

  def attend_block(start, stop):
    logits = jnp.einsum(
      'ngrtc,ngsc->ngrts',
      query[:, :, :, start:stop],
      key[:, :, :stop],
      preferred_element_type=jnp.float32,
    )
    visible = mask.visible[:, None, None, start:stop, :stop]
    logits = jnp.where(visible, soft_cap(scale * logits, cap), MASKED)
    top = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - top)
    attended = jnp.einsum(
      'ngrts,ngsc->ngrtc',
      weights.astype(value.dtype),
      value[:, :, :stop],
      preferred_element_type=jnp.float32,
    )
    return attended / jnp.sum(weights, axis=-1, keepdims=True)

  count = min(max(length // QUERY_BLOCK, 1), 4)
  ends = [length * number // count for number in range(count + 1)]
  attended = jnp.concatenate([attend_block(*ends[n : n + 2]) for n in range(count)], axis=3)
  return jnp.moveaxis(attended, 3, 1).reshape(rows, length, heads, size).astype(value.dtype)


def attend_cudnn(query, key, value, mask, *, scale, cap):
  """`attend` by cuDNN's flash attention."""
  del cap  # None, or another kernel is chosen
  return jax.nn.dot_product_attention(
    query, key, value, mask=mask.visible[:, None], scale=scale, implementation='cudnn'
  )


def soft_cap(logits: Array, cap: float | None) -> Array:
  """Logits bounded softly to (-cap, cap), or unchanged if cap is None."""
  return logits if cap is None else cap * jnp.tanh(logits / cap)


def attend_splash(query, key, value, mask, *, scale, cap, interpret=False):
  """`attend` by splash attention, on each device for its own rows and heads.

  `interpret` runs the kernel without a TPU, slowly.
  """
  splash = partial(_splash, window=mask.window, scale=scale, cap=cap, interpret=interpret)
  if not sharding.has_mesh():
    return splash(query, key, value, mask.real)
  # XLA cannot partition the kernel by itself, and rows must divide the mesh.
  count = len(query)
  inputs = [sharding.pad_rows(x) for x in (query, key, value, mask.real)]
  heads = sharding.spec((sharding.ROW_AXES, None, 'tensor', None), inputs[1].shape)
  rows = sharding.spec((sharding.ROW_AXES, None), inputs[3].shape)
  axes = set(jax.sharding.get_abstract_mesh().auto_axes)
  splash = jax.shard_map(
    splash,
    in_specs=(heads, heads, heads, rows),
    out_specs=heads,
    axis_names=axes,
    check_vma=False,
  )
  return splash(*inputs)[:count]


def _splash(query, key, value, real, *, window, scale, cap, interpret):
  # Imported here because only TPUs need them, and the import takes 0.25 s.
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  length = query.shape[1]
  padded = length + -length % LANES
  if window is not None and window < length:
    # The kernel's window counts columns and ours real tokens, so padding is moved to the front.
    order = jnp.argsort(real, axis=1, stable=True)
    query, key, value, real = (_reorder(x, order) for x in (query, key, value, real))
    mask = masks.LocalMask((padded, padded), (window - 1, 0), 0)
  else:
    order = None
    mask = masks.CausalMask((padded, padded))

  def pad(x):
    """[N, T, ...] padded to a length that the kernel takes."""
    return jnp.pad(x, ((0, 0), (0, padded - length)) + ((0, 0),) * (x.ndim - 2))

  def heads_first(x):
    return jnp.swapaxes(pad(x), 1, 2)

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
  # Padding attends to padding: a query without any key would give NaN.
  segments = pad(real.astype(jnp.int32))
  scaled = (scale * query).astype(query.dtype)
  attended = jax.vmap(kernel)(
    heads_first(scaled), heads_first(key), heads_first(value), splash.SegmentIds(segments, segments)
  )
  attended = jnp.swapaxes(attended, 1, 2)[:, :length]
  return attended if order is None else _reorder(attended, jnp.argsort(order, axis=1))


def _reorder(x: Shaped[Array, 'N T *rest'], order: Array) -> Shaped[Array, 'N T *rest']:
  return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), axis=1)


KERNELS = {
  'xla': attend_xla,
  'cudnn': attend_cudnn,
  'splash': attend_splash,
}
