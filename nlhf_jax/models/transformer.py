"""A decoder-only transformer with an explicit key-value cache, as pure functions of its parameters.

One implementation for every family of `architectures.py`. Flax Linen stays inside this folder: the
rest of the package sees a `Decoder` and plain nested dicts.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from nlhf_jax import masks, trees
from nlhf_jax.errors import UserError
from nlhf_jax.models import layers
from nlhf_jax.models.architectures import Architecture
from nlhf_jax.models.attention import (
  AttentionMask,
  KeyValues,
  attend_cached,
  attend_one_of,
  select,
  soft_cap,
)
from nlhf_jax.models.blocks import FLOAT32, REMAT, Block, Ends, Numerics
from nlhf_jax.models.decoder import Cache, Decoder, PrefillCache, append_to_cache
from nlhf_jax.models.head import Head
from nlhf_jax.models.lora import Lora, is_adapter
from nlhf_jax.structs import Params

UNROLLED = 4  # up to this number of layers, unrolled programs are as small and a little faster


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

  def shapes(self) -> Params:
    """The shapes and types of what `init` returns; one layer is traced, and all have its shapes."""
    first = self._replace(sizes=self.sizes._replace(layers=self.sizes.layers[:1]))
    stacked, rest = layers.split(jax.eval_shape(lambda: first.init(jax.random.key(0))))
    count = len(self.sizes.layers)
    repeat = lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype)
    return trees.merge(jax.tree.map(repeat, stacked), rest)

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
      fixed, moving, window, rotary = layer
      params = trees.merge(layers.from_bits(fixed), moving)

      def attend_layer(query, key, value, **settings):
        attended = attend_one_of(query, key, value, by_window, window, **settings)
        # No loss differentiates the cache, and no gradient of zeros is stored for it.
        stored = tuple(lax.stop_gradient(jnp.swapaxes(x, 1, 2)) for x in (key, value))
        return attended, layers.to_bits(stored)

      return self._apply_block(params, x, select(cos_sin, rotary), attend_layer)

    stacked, ends = layers.split(params)
    fixed, moving = trees.split(stacked, lambda path: self.lora and not is_adapter(path))
    fixed = lax.stop_gradient(fixed)  # on every platform, since bits have no gradient
    x = self._apply_ends(ends, tokens, positions, method='begin')
    by_layer = (layers.to_bits(fixed), moving, window_numbers, rotary_numbers)
    x, stored = _scan(run_layer, x, by_layer, self.numerics.remat)
    keys, values = map(jnp.unstack, layers.from_bits(stored))
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

  def cast(self, params: Params) -> Params:
    """The parameters in the type of the computation, if it is smaller; norms compute in float32."""
    compute = jnp.dtype(self.numerics.compute)

    def cast(path, leaf):
      norm = 'norm' in jax.tree_util.keystr(path)
      return leaf if norm or leaf.dtype.itemsize <= compute.itemsize else leaf.astype(compute)

    return jax.tree_util.tree_map_with_path(cast, params)

  def head(self) -> Head:
    """The layer that `logits` applies."""
    if self.sizes.tied:
      return Head('embed/embedding', True, jnp.float32, self._cap)
    return Head('head/kernel', False, None, self._cap)

  def _cap(self, logits):
    return soft_cap(logits, self.sizes.logit_cap)

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
  count = len(stacked[-1])
  if remat in REMAT:
    # Inside a loop, recomputation cannot be merged with the forward pass.
    run_layer = jax.checkpoint(run_layer, policy=REMAT[remat], prevent_cse=False)
    return lax.scan(run_layer, x, stacked)
  return lax.scan(run_layer, x, stacked, unroll=count if count <= UNROLLED else 1)


def make_decoder(
  sizes: Architecture, numerics: Numerics = FLOAT32, lora: Lora | None = None
) -> Decoder:
  """A `Decoder` of the given sizes; `heads` must be a multiple of `key_heads`.

  With `lora`, `init` adds adapters, whose output is zero at the start, and no gradient reaches the
  layers under them. The decoder also takes
  parameters without adapters: those of the base.
  """
  model = Transformer(sizes, numerics, lora)
  return Decoder(
    model.init,
    model.prefill,
    model.decode,
    model.logits,
    layers.unstack_slots,
    model.cast,
    model.head(),
    model.shapes,
    sizes.heads,
  )
