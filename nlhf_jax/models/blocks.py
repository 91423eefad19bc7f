"""The Flax modules that a transformer is made of: its ends, and the parts of a block."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from nlhf_jax.models import sharding
from nlhf_jax.models.architectures import Architecture
from nlhf_jax.models.lora import Lora, delta
from nlhf_jax.models.products import matmul


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
    y = matmul(x, kernel.astype(compute))
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
    sizes, x = self.sizes, sharding.shard_rows(x)  # all tokens

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
    copies = sharding.copies_of_key_heads(sizes.heads, sizes.key_heads)
    if copies > 1:
      key, value = (jnp.repeat(x, copies, axis=2) for x in (key, value))
    query, key, value = (sharding.shard_rows(x, None, 'tensor') for x in (query, key, value))
    scale = sizes.attention_scale or sizes.head_size**-0.5
    attended, stored = attend(query, key, value, scale=scale, cap=sizes.attention_cap)
    attended = attended.reshape(*x.shape[:2], sizes.heads * sizes.head_size)
    attended = sharding.shard_rows(attended, None, 'tensor')
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
    sizes, x = self.sizes, sharding.shard_rows(x)  # all tokens

    def linear(width, name):
      return Linear(width, sizes.hidden_bias, self.numerics, self.lora, name=name)

    def units(name):
      return sharding.shard_rows(linear(sizes.hidden, name)(x), None, 'tensor')

    activate = ACTIVATIONS[sizes.activation]
    hidden = activate(units('gate')) * units('up') if sizes.gated else activate(units('up'))
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
    return sharding.shard_rows(x, 'tensor'), stored  # between layers, by tokens


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
    return sharding.shard_rows(self.final_norm(x))

  def logits(self, hidden):
    """Next-token logits in float32."""
    if self.sizes.tied:
      table = self.embed.embedding.astype(hidden.dtype)
      logits = matmul(hidden, table, jnp.float32, transposed=True)
    else:
      logits = self.head(hidden)
    logits = logits.astype(jnp.float32)
    cap = self.sizes.logit_cap
    return logits if cap is None else cap * jnp.tanh(logits / cap)
