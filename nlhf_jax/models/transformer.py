"""A decoder-only transformer with an explicit key-value cache, as pure functions of its parameters.

One implementation for every family of `architectures.py`. Flax Linen stays inside this folder: the
rest of the package sees a `Decoder` and plain nested dicts. Layers are unrolled, so that decoding
reads each layer's weights without a copy.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from nlhf_jax import masks
from nlhf_jax.errors import UserError
from nlhf_jax.models import sharding
from nlhf_jax.models.architectures import Architecture
from nlhf_jax.models.attention import AttentionMask, KeyValues, attend, attend_cached
from nlhf_jax.models.decoder import Cache, Decoder, PrefillCache, append_to_cache
from nlhf_jax.models.lora import Lora, delta


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


class Transformer(nn.Module):
  """The whole model; see `Decoder` for its methods."""

  sizes: Architecture
  numerics: Numerics
  lora: Lora | None

  def setup(self):
    sizes, numerics = self.sizes, self.numerics

    def per_layer(make):
      return [make() for _ in sizes.layers]

    def embedding(count):
      initial = nn.initializers.normal(sizes.width**-0.5)
      return nn.Embed(
        count, sizes.width, numerics.compute, numerics.weights, embedding_init=initial
      )

    norm = lambda: Norm(sizes, numerics)
    self.embed = embedding(sizes.vocabulary)
    if sizes.learned_positions:
      self.position_table = embedding(sizes.max_positions)
    self.attentions = per_layer(lambda: Attention(sizes, numerics, self.lora))
    self.feed_forwards = per_layer(lambda: FeedForward(sizes, numerics, self.lora))
    self.attention_norms, self.feed_forward_norms = per_layer(norm), per_layer(norm)
    if sizes.post_norms:
      self.attention_post_norms, self.feed_forward_post_norms = per_layer(norm), per_layer(norm)
    self.final_norm = norm()
    if not sizes.tied:
      self.head = Linear(sizes.vocabulary, False, numerics)

  def __call__(self, tokens, mask):
    """Prefill: hidden states of whole sequences, and their cache."""
    length, positions = mask.shape[1], masks.positions(mask)
    causal = mask[:, None, :] & jnp.tri(length, dtype=bool)
    # Layers with the same window share a mask.
    by_window = {None: AttentionMask(causal, mask)}
    for window in self._windows():
      near = positions[:, :, None] - positions[:, None, :] < window
      by_window[window] = AttentionMask(causal & near, mask, window)

    def attend_layer(number, query, key, value, **settings):
      attended = attend(query, key, value, by_window[self.sizes.layers[number].window], **settings)
      return attended, tuple(jnp.swapaxes(x, 1, 2) for x in (key, value))

    remat = REMAT.get(self.numerics.remat)
    hidden, keys, values = self._run_layers(tokens, positions, length, attend_layer, remat)
    return hidden, PrefillCache(keys, values, mask)

  def decode(self, tokens, cache):
    """Hidden states of the next few tokens of each row, and the cache with them."""
    prompts, (rows, count) = cache.prompts, tokens.shape
    size, slots = prompts.mask.shape[1], jnp.arange(cache.keys[0].shape[2])
    before = jnp.sum(prompts.mask, axis=1)[:, None, None]  # real tokens of each prompt
    columns = cache.length[:, None] + jnp.arange(count)  # of the cache, one for each token
    positions = before + columns.reshape(len(before), -1, count)
    own, of_prompts = slots <= columns[:, :, None], prompts.mask[:, None, None]
    by_window = {None: (of_prompts, own[:, None])}
    for window in self._windows():
      near = positions[..., None] - masks.positions(prompts.mask)[:, None, None] < window
      recent = columns[:, :, None] - slots < window
      by_window[window] = (of_prompts & near, (own & recent)[:, None])

    def attend_layer(number, query, key, value, **settings):
      key = append_to_cache(cache.keys[number], key, columns)
      value = append_to_cache(cache.values[number], value, columns)
      of_prompts, own = by_window[self.sizes.layers[number].window]
      parts = [
        KeyValues(prompts.keys[number], prompts.values[number], of_prompts),
        KeyValues(key, value, own),
      ]
      return attend_cached(query, parts, **settings), (key, value)

    # Rows that are done run past the last position, where a learned table has only NaN.
    positions = jnp.minimum(positions.reshape(rows, count), self.sizes.max_positions - 1)
    hidden, keys, values = self._run_layers(tokens, positions, size + len(slots), attend_layer)
    return hidden, Cache(prompts, keys, values, cache.length + count)

  def _windows(self):
    return {layer.window for layer in self.sizes.layers} - {None}

  def _run_layers(self, tokens, positions, length, attend_layer, remat=None):
    """Hidden states, and the keys and the values that each layer stores."""
    sizes = self.sizes
    if length > sizes.max_positions:
      raise UserError(
        f'{length} tokens are more than the {sizes.max_positions} that the model has positions '
        'for; lower config.data.prompt_length or config.data.response_length.'
      )
    # Each row of the table is whole on one device; the rows are split over `tensor`.
    table = jnp.asarray(self.embed.embedding, self.numerics.compute)
    table = sharding.shard_axes(table, 'tensor', None)
    x = sharding.shard_rows(jnp.take(table, tokens, axis=0))
    x *= jnp.asarray(sizes.embedding_scale, x.dtype)
    if sizes.learned_positions:
      x += self.position_table(positions)
    # Layers with the same rotary positions share cosines and sines.
    cos_sin = {layer.rotary: self._cos_sin(layer.rotary, positions) for layer in sizes.layers}
    stored = []
    for number, layer in enumerate(sizes.layers):

      def block(self, x, number=number, cos_sin=cos_sin[layer.rotary]):
        return self._run_layer(number, x, cos_sin, partial(attend_layer, number))

      x, pair = (nn.remat(block, policy=remat) if remat else block)(self, x)
      stored.append(pair)
    return self.final_norm(x), *zip(*stored, strict=True)

  def _cos_sin(self, rotary, positions):
    if rotary is None:
      return None
    angle = positions[:, :, None, None] * rotary.frequencies(self.sizes.head_size)
    return jnp.cos(angle), jnp.sin(angle)

  def _run_layer(self, number, x, cos_sin, attend):
    out, pair = self.attentions[number](self.attention_norms[number](x), cos_sin, attend)
    x = x + (self.attention_post_norms[number](out) if self.sizes.post_norms else out)
    out = self.feed_forwards[number](self.feed_forward_norms[number](x))
    x = x + (self.feed_forward_post_norms[number](out) if self.sizes.post_norms else out)
    return sharding.shard_rows(x), pair

  def use_all(self, tokens, mask):
    """Uses every parameter once, so that `init` creates it."""
    return self.logits(self(tokens, mask)[0])

  def logits(self, hidden):
    if self.sizes.tied:
      logits = hidden @ self.embed.embedding.astype(hidden.dtype).T
    else:
      logits = self.head(hidden)
    logits = logits.astype(jnp.float32)
    cap = self.sizes.logit_cap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def make_decoder(
  sizes: Architecture, numerics: Numerics = FLOAT32, lora: Lora | None = None
) -> Decoder:
  """A `Decoder` of the given sizes; `heads` must be a multiple of `key_heads`.

  With `lora`, `init` adds adapters, whose output is zero at the start. The decoder also takes
  parameters without adapters: those of the base.
  """
  model = Transformer(sizes, numerics, lora)

  def init(key):
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = model.init(key, tokens, tokens == 0, method=Transformer.use_all)['params']
    # One head a layer starts with queries equal to keys, so that it attends to tokens like the
    # current one from the first step. Otherwise learning to copy from the prompt takes long.
    for layer in range(len(sizes.layers)):
      attention = params[f'attentions_{layer}']
      same = attention['key']['kernel'][:, : sizes.head_size]
      attention['query']['kernel'] = attention['query']['kernel'].at[:, : sizes.head_size].set(same)
    return params

  def prefill(params, tokens, mask):
    return model.apply({'params': params}, tokens, mask)

  def decode(params, tokens, cache):
    return model.apply({'params': params}, tokens, cache, method='decode')

  def logits(params, hidden):
    return model.apply({'params': params}, hidden, method='logits')

  return Decoder(init, prefill, decode, logits)
