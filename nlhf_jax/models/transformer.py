"""A decoder-only transformer with an explicit key-value cache, as pure functions of its parameters.

One implementation for every family of `architectures.py`. Flax Linen stays inside this folder: the
rest of the package sees a `Decoder` and plain nested dicts.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from nlhf_jax import masks
from nlhf_jax.errors import UserError
from nlhf_jax.models import layers, sharding
from nlhf_jax.models.architectures import Architecture
from nlhf_jax.models.attention import (
  AttentionMask,
  KeyValues,
  attend_cached,
  attend_one_of,
  select,
)
from nlhf_jax.models.decoder import Cache, Decoder, PrefillCache, append_to_cache
from nlhf_jax.models.lora import Lora, delta
from nlhf_jax.structs import Params


class Numerics(NamedTuple):
  """The types a decoder computes in and stores its weights in, and what backward passes recompute.

  Adapters are stored in float32, whatever the type of the weights under them.

  `remat` is `nothing`, `layers` (everything but each layer's input is recomputed) or `dots`
  (everything but the results of matrix products).
  """

  compute: Any = jnp.float32
  weights: Any = jnp.float32
  remat: str = 'nothing'


FLOAT32 = Numerics()
UNROLLED = 4  # up to this number of layers, unrolled programs are as small and a little faster


def rotate(x: Float[Array, 'N T H C'], cos_sin: tuple[Array, Array]) -> Float[Array, 'N T H C']:
  """Rotary position embedding, pairing dimension i with i + C/2 (arXiv 2104.09864, eq. 34).

  `cos_sin` are the cosine and the sine of each token's angles, [N, T, 1, C/2].
  """
  cos, sin = cos_sin
  a, b = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class Linear(nn.Module):
  """x W + b, plus the output of its adapter, if it has one."""

  size: int
  bias: bool
  numerics: Numerics
  lora: Lora | None = None

  @nn.compact
  def __call__(self, x):
    compute, weights, _ = self.numerics
    shape = (x.shape[-1], self.size)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape, weights)
    y = x @ kernel.astype(compute)
    if self.bias:
      y += self.param('bias', nn.initializers.zeros, (self.size,), weights).astype(compute)
    if self.lora and self.name in self.lora.targets:
      if self.is_initializing():
        # PEFT's initialisation: A is uniform within +-1 / sqrt(inputs), B is zero.
        initial = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
        self.param('lora_a', initial, (shape[0], self.lora.rank))
        self.param('lora_b', nn.initializers.zeros, (self.lora.rank, self.size))
      if self.has_variable('params', 'lora_a'):  # the base alone has none
        a, b = (self.get_variable('params', name).astype(compute) for name in ('lora_a', 'lora_b'))
        y += delta(x, a, b, self.lora.scale)
    return y


class Norm(nn.Module):
  """RMSNorm or LayerNorm over the last axis, in float32.

  Flax's own norms have no scale that is stored as an offset from 1, as Gemma's is, and their
  gradients round differently, which would change the digits of every run.
  """

  sizes: Architecture
  numerics: Numerics

  @nn.compact
  def __call__(self, x):
    sizes, weights = self.sizes, self.numerics.weights
    initial = nn.initializers.constant(1 - sizes.norm_offset)
    wide = x.astype(jnp.float32)
    if sizes.norm == 'layer':
      wide -= jnp.mean(wide, axis=-1, keepdims=True)
    scale = self.param('scale', initial, x.shape[-1:], weights).astype(jnp.float32)
    scale += sizes.norm_offset
    wide *= scale * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + sizes.norm_epsilon)
    if sizes.norm == 'layer':
      wide += self.param('bias', nn.initializers.zeros, x.shape[-1:], weights)
    return wide.astype(x.dtype)


class Attention(nn.Module):
  """Grouped-query attention.

  `attend` maps (query, key, value) to the attended values and the keys and values to store.
  """

  sizes: Architecture
  numerics: Numerics
  lora: Lora | None

  @nn.compact
  def __call__(self, x, cos_sin, attend):
    sizes = self.sizes

    def heads(count, name):
      y = Linear(count * sizes.head_size, sizes.input_bias, self.numerics, self.lora, name=name)(x)
      return y.reshape(*x.shape[:2], count, sizes.head_size)

    query, key = heads(sizes.heads, 'query'), heads(sizes.key_heads, 'key')
    value = heads(sizes.key_heads, 'value')
    if sizes.head_norms:
      query = Norm(sizes, self.numerics, name='query_norm')(query)
      key = Norm(sizes, self.numerics, name='key_norm')(key)
    if cos_sin is not None:
      query, key = rotate(query, cos_sin), rotate(key, cos_sin)
    query, key, value = (sharding.shard_rows(x, None, 'tensor') for x in (query, key, value))
    scale = sizes.attention_scale or sizes.head_size**-0.5
    attended, stored = attend(query, key, value, scale=scale, cap=sizes.attention_cap)
    attended = attended.reshape(*x.shape[:2], sizes.heads * sizes.head_size)
    out = Linear(sizes.width, sizes.output_bias, self.numerics, self.lora, name='out')
    return out(attended), stored


ACTIVATIONS = {
  'silu': nn.silu,
  'gelu': lambda x: nn.gelu(x, approximate=False),
  'gelu_tanh': lambda x: nn.gelu(x, approximate=True),
}


class FeedForward(nn.Module):
  """Two linear layers around an activation, gated or not."""

  sizes: Architecture
  numerics: Numerics
  lora: Lora | None

  @nn.compact
  def __call__(self, x):
    sizes = self.sizes

    def linear(width, name):
      return Linear(width, sizes.hidden_bias, self.numerics, self.lora, name=name)

    activate = ACTIVATIONS[sizes.activation]
    if sizes.gated:
      hidden = activate(linear(sizes.hidden, 'gate')(x)) * linear(sizes.hidden, 'up')(x)
    else:
      hidden = activate(linear(sizes.hidden, 'up')(x))
    return linear(sizes.width, 'down')(hidden)


# The intermediate results of a layer that are stored for the backward pass.
REMAT = {
  'layers': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Block(nn.Module):
  """One layer. Its parameters' names end with `suffix`, which `init` sets."""

  sizes: Architecture
  numerics: Numerics
  lora: Lora | None
  suffix: str = ''

  @nn.compact
  def __call__(self, x, cos_sin, attend):
    sizes, numerics, suffix = self.sizes, self.numerics, self.suffix
    norm = lambda name, x: Norm(sizes, numerics, name=f'{name}_norms{suffix}')(x)
    attention = Attention(sizes, numerics, self.lora, name=f'attentions{suffix}')
    out, stored = attention(norm('attention', x), cos_sin, attend)
    x = x + (norm('attention_post', out) if sizes.post_norms else out)
    feed_forward = FeedForward(sizes, numerics, self.lora, name=f'feed_forwards{suffix}')
    out = feed_forward(norm('feed_forward', x))
    x = x + (norm('feed_forward_post', out) if sizes.post_norms else out)
    return sharding.shard_rows(x), stored


class Ends(nn.Module):
  """What comes before the layers and after them."""

  sizes: Architecture
  numerics: Numerics

  def setup(self):
    sizes, numerics = self.sizes, self.numerics

    def embedding(count):
      initial = nn.initializers.normal(sizes.width**-0.5)
      return nn.Embed(
        count, sizes.width, numerics.compute, numerics.weights, embedding_init=initial
      )

    self.embed = embedding(sizes.vocabulary)
    if sizes.learned_positions:
      self.position_table = embedding(sizes.max_positions)
    self.final_norm = Norm(sizes, numerics)
    if not sizes.tied:
      self.head = Linear(sizes.vocabulary, False, numerics)

  def use_all(self, tokens):
    """Uses every parameter once, so that `init` creates it."""
    return self.logits(self.finish(self.begin(tokens, jnp.zeros_like(tokens))))

  def begin(self, tokens, positions):
    """The input of the first layer."""
    # Each row of the table is whole on one device; the rows are split over `tensor`.
    table = jnp.asarray(self.embed.embedding, self.numerics.compute)
    table = sharding.shard_axes(table, 'tensor', None)
    x = sharding.shard_rows(jnp.take(table, tokens, axis=0))
    x *= jnp.asarray(self.sizes.embedding_scale, x.dtype)
    return x + self.position_table(positions) if self.sizes.learned_positions else x

  def finish(self, x):
    """The hidden states, from the output of the last layer."""
    return self.final_norm(x)

  def logits(self, hidden):
    """Next-token logits in float32."""
    if self.sizes.tied:
      logits = hidden @ self.embed.embedding.astype(hidden.dtype).T
    else:
      logits = self.head(hidden)
    logits = logits.astype(jnp.float32)
    cap = self.sizes.logit_cap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


class Transformer(NamedTuple):
  """The whole model as pure functions of its parameters; see `Decoder`.

  Prefill scans over stacked layers; layers that differ take their rotary positions and their mask
  by number. Decoding runs through numbered layers one by one: on a CPU a scan copies the weights of
  each layer for each token.
  """

  sizes: Architecture
  numerics: Numerics
  lora: Lora | None

  def init(self, key: Array) -> Params:
    """New parameters with stacked layers."""
    sizes, tokens = self.sizes, jnp.zeros((1, 1), jnp.int32)
    params = Ends(sizes, self.numerics).init(key, tokens, method='use_all')['params']
    x = jnp.zeros((1, 1, sizes.width), self.numerics.compute)
    for number, layer in enumerate(sizes.layers):
      block = Block(sizes, self.numerics, self.lora, f'_{number}')
      cos_sin = self._cos_sin(layer.rotary, tokens)
      new = block.init(key, x, cos_sin, lambda query, key, value, **settings: (query, None))
      params |= new['params']
      # One head a layer starts with queries equal to keys, so that it attends to tokens like the
      # current one from the first step. Otherwise learning to copy from the prompt takes long.
      attention = params[f'attentions_{number}']
      same = attention['key']['kernel'][:, : sizes.head_size]
      attention['query']['kernel'] = attention['query']['kernel'].at[:, : sizes.head_size].set(same)
    return layers.stack(params)

  def prefill(self, params: Params, tokens: Array, mask: Array) -> tuple[Array, PrefillCache]:
    """Hidden states of whole sequences, and their cache."""
    sizes, length, positions = self.sizes, mask.shape[1], masks.positions(mask)
    self._check_length(length)
    causal = mask[:, None, :] & jnp.tri(length, dtype=bool)
    windows, window_numbers = _number([layer.window for layer in sizes.layers])
    rotaries, rotary_numbers = _number([layer.rotary for layer in sizes.layers])
    by_window = [_window_mask(causal, mask, positions, window) for window in windows]
    cos_sin = [self._cos_sin(rotary, positions) for rotary in rotaries]

    def run_layer(x, layer):
      params, window, rotary = layer

      def attend_layer(query, key, value, **settings):
        attended = attend_one_of(query, key, value, by_window, window, **settings)
        # No loss differentiates the cache, and no gradient of zeros is stored for it.
        return attended, tuple(lax.stop_gradient(jnp.swapaxes(x, 1, 2)) for x in (key, value))

      return self._apply_block(params, x, select(cos_sin, rotary), attend_layer)

    stacked, ends = layers.split(params)
    x = self._apply_ends(ends, tokens, positions, method='begin')
    x, stored = _scan(run_layer, x, (stacked, window_numbers, rotary_numbers), self.numerics.remat)
    keys, values = map(jnp.unstack, stored)
    return self._apply_ends(ends, x, method='finish'), PrefillCache(keys, values, mask)

  def decode(self, params: Params, tokens: Array, cache: Cache) -> tuple[Array, Cache]:
    """Hidden states of the next few tokens of each row, and the cache with them."""
    sizes, prompts, (rows, count) = self.sizes, cache.prompts, tokens.shape
    slots = jnp.arange(cache.keys[0].shape[2])
    self._check_length(prompts.mask.shape[1] + len(slots))
    before = jnp.sum(prompts.mask, axis=1)[:, None, None]  # real tokens of each prompt
    columns = cache.length[:, None] + jnp.arange(count)  # of the cache, one for each token
    positions = before + columns.reshape(len(before), -1, count)
    own, of_prompts = slots <= columns[:, :, None], prompts.mask[:, None, None]
    by_window = {None: (of_prompts, own[:, None])}
    for window in {layer.window for layer in sizes.layers} - {None}:
      near = positions[..., None] - masks.positions(prompts.mask)[:, None, None] < window
      recent = columns[:, :, None] - slots < window
      by_window[window] = (of_prompts & near, (own & recent)[:, None])

    @jax.jit  # traced once for all layers of a kind
    def run_layer(params, x, cos_sin, visible, prompts, own, columns):
      def attend_layer(query, key, value, **settings):
        stored = tuple(
          append_to_cache(buffer, new, columns)
          for buffer, new in zip(own, (key, value), strict=True)
        )
        pairs = zip((prompts, stored), visible, strict=True)
        parts = [KeyValues(*pair, mask) for pair, mask in pairs]
        return attend_cached(query, parts, **settings), stored

      return self._apply_block(params, x, cos_sin, attend_layer)

    # Rows that are done run past the last position, where a learned table has only NaN.
    positions = jnp.minimum(positions.reshape(rows, count), sizes.max_positions - 1)
    # Layers with the same rotary positions share cosines and sines.
    cos_sin = {layer.rotary: self._cos_sin(layer.rotary, positions) for layer in sizes.layers}
    params = layers.unstack(params)
    x, stored = self._apply_ends(params, tokens, positions, method='begin'), []
    pairs = zip(prompts.keys, prompts.values, cache.keys, cache.values, strict=True)
    for number, (layer, arrays) in enumerate(zip(sizes.layers, pairs, strict=True)):
      x, pair = run_layer(
        layers.one(params, number),
        x,
        cos_sin[layer.rotary],
        by_window[layer.window],
        arrays[:2],
        arrays[2:],
        columns,
      )
      stored.append(pair)
    hidden = self._apply_ends(params, x, method='finish')
    return hidden, Cache(prompts, *zip(*stored, strict=True), cache.length + count)

  def logits(self, params: Params, hidden: Array) -> Array:
    """Next-token logits in float32."""
    return self._apply_ends(params, hidden, method='logits')

  def _apply_block(self, params, *inputs):
    return Block(self.sizes, self.numerics, self.lora).apply({'params': params}, *inputs)

  def _apply_ends(self, params, *inputs, method):
    return Ends(self.sizes, self.numerics).apply({'params': params}, *inputs, method=method)

  def _check_length(self, length):
    if length > self.sizes.max_positions:
      raise UserError(
        f'{length} tokens are more than the {self.sizes.max_positions} that the model has '
        'positions for; lower config.data.prompt_length or config.data.response_length.'
      )

  def _cos_sin(self, rotary, positions):
    if rotary is None:
      return None
    angle = positions[:, :, None, None] * rotary.frequencies(self.sizes.head_size)
    return jnp.cos(angle), jnp.sin(angle)


def _number(values: list[Any]) -> tuple[list[Any], np.ndarray]:
  """The distinct values, and the number of each value among them."""
  distinct = list(dict.fromkeys(values))
  return distinct, np.array([distinct.index(value) for value in values])


def _window_mask(causal, mask, positions, window):
  if window is None:
    return AttentionMask(causal, mask)
  near = positions[:, :, None] - positions[:, None, :] < window
  return AttentionMask(causal & near, mask, window)


def _scan(run_layer, x, stacked, remat):
  """The output of the last layer, and what all layers store, [L, ...]."""
  count = len(stacked[1])
  if remat in REMAT:
    # Inside a loop, recomputation cannot be merged with the forward pass.
    run_layer = jax.checkpoint(run_layer, policy=REMAT[remat], prevent_cse=False)
    return lax.scan(run_layer, x, stacked)
  return lax.scan(run_layer, x, stacked, unroll=count if count <= UNROLLED else 1)


def make_decoder(
  sizes: Architecture, numerics: Numerics = FLOAT32, lora: Lora | None = None
) -> Decoder:
  """A `Decoder` of the given sizes; `heads` must be a multiple of `key_heads`.

  With `lora`, `init` adds adapters, whose output is zero at the start. The decoder also takes
  parameters without adapters: those of the base.
  """
  model = Transformer(sizes, numerics, lora)
  return Decoder(model.init, model.prefill, model.decode, model.logits, layers.unstack)
