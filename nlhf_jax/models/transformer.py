"""A decoder-only transformer with an explicit key-value cache, as pure functions of its parameters.

RMSNorm, rotary positions, grouped-query attention, SwiGLU and an embedding tied to the head. Flax
Linen stays inside this folder: the rest of the package sees a `Decoder`, four functions and plain
nested dicts. Sharding, adapters and pretrained weights are not here.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax import masks
from nlhf_jax.structs import Params


class Architecture(NamedTuple):
  """The sizes of a decoder. `hidden` is the width inside the feed-forward block."""

  vocabulary: int
  width: int
  layers: int
  heads: int
  key_heads: int
  head_size: int
  hidden: int
  rotary_base: float


class Cache(NamedTuple):
  """Keys and values of the tokens read so far, one pair of buffers a layer.

  `mask` says which of the S places hold a real token; the next token goes to place `length`.
  """

  keys: tuple[Float[Array, 'N S G C'], ...]
  values: tuple[Float[Array, 'N S G C'], ...]
  mask: Bool[Array, 'N S']
  length: Int[Array, '']


class Decoder(NamedTuple):
  """A decoder as functions.

  `init(key)` gives parameters; `read(params, tokens [N, T], mask [N, T], cache)` gives hidden
  states [N, T, D] and the cache grown by T tokens (without a cache, it attends within the tokens
  and the cache is None); `logits(params, hidden [..., D])` gives float32 logits [..., V];
  `empty(rows, places)` gives an empty cache.
  """

  init: Callable[[Array], Params]
  read: Callable[..., tuple[Array, Cache | None]]
  logits: Callable[[Params, Array], Array]
  empty: Callable[[int, int], Cache]


def rotate(x: Float[Array, 'N T H C'], positions: Int[Array, 'N T'], base: float) -> Array:
  """Rotary position embedding, pairing dimension i with i + C/2 (arXiv 2104.09864, eq. 34)."""
  half = x.shape[-1] // 2
  frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions[:, :, None, None] * frequency
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class Attention(nn.Module):
  """Grouped-query attention over the tokens at hand and, if given, over a cache."""

  sizes: Architecture

  @nn.compact
  def __call__(self, x, positions, visible, past, start):
    sizes = self.sizes

    def heads(count, name):
      return nn.DenseGeneral((count, sizes.head_size), use_bias=False, name=name)(x)

    query = rotate(heads(sizes.heads, 'query'), positions, sizes.rotary_base)
    key = rotate(heads(sizes.key_heads, 'key'), positions, sizes.rotary_base)
    value = heads(sizes.key_heads, 'value')
    if past is not None:
      key, value = (
        lax.dynamic_update_slice(old, new, (0, start, 0, 0))
        for old, new in zip(past, (key, value), strict=True)
      )
    mixed = jax.nn.dot_product_attention(query, key, value, mask=visible[:, None])
    out = nn.DenseGeneral(sizes.width, axis=(-2, -1), use_bias=False, name='out')(mixed)
    return out, (key, value)


class FeedForward(nn.Module):
  """SwiGLU (arXiv 2002.05202)."""

  sizes: Architecture

  @nn.compact
  def __call__(self, x):
    dense = lambda width, name: nn.Dense(width, use_bias=False, name=name)
    gate = nn.silu(dense(self.sizes.hidden, 'gate')(x))
    return dense(self.sizes.width, 'down')(gate * dense(self.sizes.hidden, 'up')(x))


class Transformer(nn.Module):
  """The whole decoder; see `Decoder` for its two methods."""

  sizes: Architecture

  def setup(self):
    sizes = self.sizes
    initial = nn.initializers.normal(sizes.width**-0.5)
    self.embed = nn.Embed(sizes.vocabulary, sizes.width, embedding_init=initial)
    self.attentions = [Attention(sizes) for _ in range(sizes.layers)]
    self.feed_forwards = [FeedForward(sizes) for _ in range(sizes.layers)]
    self.attention_norms = [nn.RMSNorm() for _ in range(sizes.layers)]
    self.feed_forward_norms = [nn.RMSNorm() for _ in range(sizes.layers)]
    self.final_norm = nn.RMSNorm()

  def __call__(self, tokens, mask, cache=None):
    length = tokens.shape[1]
    start = 0 if cache is None else cache.length
    valid = mask if cache is None else lax.dynamic_update_slice(cache.mask, mask, (0, start))
    positions = lax.dynamic_slice_in_dim(masks.positions(valid), start, length, axis=1)
    places = start + jnp.arange(length)
    visible = valid[:, None, :] & (jnp.arange(valid.shape[1]) <= places[:, None])

    x = self.embed(tokens) * self.sizes.width**0.5
    pairs = []
    for layer in range(self.sizes.layers):
      past = None if cache is None else (cache.keys[layer], cache.values[layer])
      out, pair = self.attentions[layer](
        self.attention_norms[layer](x), positions, visible, past, start
      )
      x = x + out
      x = x + self.feed_forwards[layer](self.feed_forward_norms[layer](x))
      pairs.append(pair)
    if cache is not None:
      keys, values = zip(*pairs, strict=True)
      cache = Cache(keys, values, valid, start + length)
    return self.final_norm(x), cache

  def logits(self, hidden):
    return self.embed.attend(hidden).astype(jnp.float32)


def make_decoder(sizes: Architecture) -> Decoder:
  """A `Decoder` of the given sizes; `heads` must be a multiple of `key_heads`."""
  model = Transformer(sizes)

  def init(key):
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = model.init(key, tokens, tokens == 0)['params']
    # One head a layer starts with queries equal to keys, so that it finds words like the one at
    # hand from the first step. Without it, learning to copy from the prompt is a long plateau.
    for layer in range(sizes.layers):
      attention = params[f'attentions_{layer}']
      same = attention['key']['kernel'][:, 0]
      attention['query']['kernel'] = attention['query']['kernel'].at[:, 0].set(same)
    return params

  def read(params, tokens, mask, cache=None):
    return model.apply({'params': params}, tokens, mask, cache)

  def logits(params, hidden):
    return model.apply({'params': params}, hidden, method='logits')

  def empty(rows, places):
    buffers = lambda: tuple(
      jnp.zeros((rows, places, sizes.key_heads, sizes.head_size)) for _ in range(sizes.layers)
    )
    return Cache(buffers(), buffers(), jnp.zeros((rows, places), bool), jnp.zeros((), jnp.int32))

  return Decoder(init, read, logits, empty)
