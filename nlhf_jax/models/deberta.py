"""DeBERTa, an encoder with disentangled attention, as pure functions of its parameters.

Versions 2 and 3 (arXiv 2006.03654, 2111.09543), as in `transformers`: attention logits are the sum
of content-to-content, content-to-position (c2p) and position-to-content (p2c) terms. Positions are
relative, and distant ones share buckets. The heads of pretraining are left out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax.errors import UserError
from nlhf_jax.models import architectures, sharding
from nlhf_jax.models.attention import MASKED, platform
from nlhf_jax.models.blocks import ACTIVATIONS, FLOAT32, Numerics
from nlhf_jax.structs import Params

ACTIVATE = {'tanh': jnp.tanh} | {
  name: ACTIVATIONS[ours] for name, ours in architectures.ACTIVATIONS.items()
}


class RelativePositions(NamedTuple):
  """Relative positions: exact up to `buckets`/2 tokens, logarithmic from there to `farthest`.

  With 0 buckets all are exact, up to `farthest`.
  """

  terms: tuple[str, ...]  # c2p and p2c, or one of them
  farthest: int
  buckets: int
  shared: bool  # positions use the projections of contents
  normed: bool

  @property
  def span(self) -> int:
    """Rows of the embedding on each side of distance 0."""
    return self.buckets or self.farthest

  def bucketed(self, length: int) -> Int[np.ndarray, 'distances']:
    """The row of the embedding for each distance from 1 - length to length - 1."""
    distance = np.arange(1 - length, length)
    if self.buckets:
      middle = self.buckets // 2
      # The logarithm in float32, as in the code that trained the weights.
      far = np.maximum(np.abs(distance), middle).astype(np.float32) / np.float32(middle)
      octaves = np.log(far) / np.log(np.float32((self.farthest - 1) / middle))
      bucket = np.ceil(octaves * np.float32(middle - 1)).astype(int) + middle
      distance = np.where(np.abs(distance) <= middle, distance, np.sign(distance) * bucket)
    return np.clip(distance + self.span, 0, 2 * self.span - 1)


class Convolution(NamedTuple):
  """A convolution over tokens that the first layer adds."""

  size: int
  groups: int
  activate: Callable[[Array], Array]


class Sizes(NamedTuple):
  """The sizes of a DeBERTa encoder; `embedded` is the width of embeddings, `hidden` in a block."""

  vocabulary: int
  embedded: int
  width: int
  layers: int
  heads: int
  head_size: int
  hidden: int
  activate: Callable[[Array], Array]
  norm_epsilon: float
  terms: int  # of the attention logits, which are scaled by 1 / sqrt(head_size x terms)
  relative: RelativePositions | None
  absolute: int = 0  # number of learned absolute positions
  types: int = 0  # number of token types; all tokens here are of the first
  convolution: Convolution | None = None


class Encoder(NamedTuple):
  """An encoder as functions.

  - `init(key)` returns parameters.
  - `project_positions(params)` returns each layer's keys and queries of relative positions, [H, W,
    C] or None; all texts share them, so that they are computed once.
  - `encode(params, projections, tokens [N, S], mask [N, S], columns [N, Q])` returns the last
    hidden states at the given columns, [N, Q, D].
  """

  init: Callable[[Array], Params]
  project_positions: Callable[[Params], tuple]
  encode: Callable[[Params, tuple, Array, Array, Array], Array]


def sizes_from_config(config: Any) -> Sizes:
  """The sizes of a `transformers` config of type `deberta-v2`.

  Raises:
    UserError: if one of its settings is not supported.
  """
  known = architectures.lookup
  terms = tuple(term for term in ('c2p', 'p2c') if term in (config.pos_att_type or ()))
  relative = convolution = None
  if config.relative_attention:
    farthest = config.max_relative_positions
    relative = RelativePositions(
      terms=terms,
      farthest=config.max_position_embeddings if farthest < 1 else farthest,
      buckets=max(getattr(config, 'position_buckets', -1), 0),
      shared=getattr(config, 'share_att_key', False),
      normed='layer_norm' in getattr(config, 'norm_rel_ebd', 'none').lower().split('|'),
    )
  if getattr(config, 'conv_kernel_size', 0) > 0:
    convolution = Convolution(
      config.conv_kernel_size,
      getattr(config, 'conv_groups', 1),
      known(ACTIVATE, 'conv_act', getattr(config, 'conv_act', 'tanh')),
    )
  heads = config.num_attention_heads
  return Sizes(
    vocabulary=config.vocab_size,
    embedded=getattr(config, 'embedding_size', config.hidden_size),
    width=config.hidden_size,
    layers=config.num_hidden_layers,
    heads=heads,
    head_size=config.hidden_size // heads,
    hidden=config.intermediate_size,
    activate=known(ACTIVATE, 'hidden_act', config.hidden_act),
    norm_epsilon=config.layer_norm_eps,
    terms=1 + len(terms),
    relative=relative,
    absolute=config.max_position_embeddings if config.position_biased_input else 0,
    types=config.type_vocab_size,
    convolution=convolution,
  )


# Keys and queries of relative positions, each None where attention has no such term.
PositionProjections = tuple[Float[Array, 'H W C'] | None, Float[Array, 'H W C'] | None]


def attend_disentangled(
  query: Float[Array, 'N Q H C'],
  key: Float[Array, 'N S H C'],
  value: Float[Array, 'N S H C'],
  positions: PositionProjections,
  buckets: Int[np.ndarray, 'distances'],
  columns: Int[Array, 'N Q'],
  mask: Bool[Array, 'N S'],
  scale: float,
) -> Float[Array, 'N Q H C']:
  """Disentangled attention: softmax over s of scale (q.k + q.K[b] + Q[b].k), applied to values.

  b is the bucket of the distance from the query's column to s (arXiv 2006.03654, eq. 4, without the
  position-to-position term). A CPU takes one head of one row at a time, whose logits [Q, S] fit
  its cache: this takes half the time of all at once, which accelerators do.

  Args:
    query: of the tokens at `columns`.
    key: of all tokens.
    value: of all tokens.
    positions: K and Q, each [H, W, C] or None.
    buckets: of each distance from 1 - S to S - 1; empty without relative positions.
    columns: of the queries.
    mask: which tokens are real.
    scale: of the logits.
  """
  length = key.shape[1]
  first, end = (buckets.min(), buckets.max() + 1) if buckets.size else (0, 0)
  positions = jax.tree.map(lambda x: x[:, first:end], positions)  # those that occur
  one_by_one = platform() == 'cpu' and not sharding.has_mesh()
  map_rows = lax.map if one_by_one else lambda function, xs: jax.vmap(function)(xs)

  def attend_row(row):
    *heads, columns, mask = row
    bucket = None
    if buckets.size:
      distance = columns[:, None] - jnp.arange(length)
      bucket = _take(jnp.asarray(buckets - first), distance + length - 1)
    return map_rows(lambda head: _attend_head(*head, bucket, mask, scale), (*heads, *positions))

  heads = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
  return jnp.swapaxes(map_rows(attend_row, (*heads, columns, mask)), 1, 2)


def _attend_head(query, key, value, keys, queries, bucket, mask, scale):
  """`attend_disentangled` for one head of one row; `bucket` is [Q, S]."""

  def product(one, other):
    return jnp.matmul(one, other, preferred_element_type=jnp.float32)

  logits = product(query, key.T)
  if keys is not None:
    logits += _take(product(query, keys.T), bucket, axis=1)
  if queries is not None:
    logits += _take(product(queries, key.T), bucket, axis=0)
  logits = jnp.where(mask, scale * logits, MASKED)
  weights = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
  attended = product(weights.astype(value.dtype), value)
  return (attended / jnp.sum(weights, axis=1, keepdims=True)).astype(value.dtype)


def _take(x, index, axis=None):
  """x at an index that is known to be in bounds."""
  if axis is None:
    return x.at[index].get(mode='promise_in_bounds')
  return jnp.take_along_axis(x, index, axis, mode='promise_in_bounds')


class DisentangledAttention(nn.Module):
  """Disentangled attention from some tokens to all."""

  sizes: Sizes
  numerics: Numerics

  def setup(self):
    def dense():
      return _dense(self.sizes.heads * self.sizes.head_size, self.numerics)

    self.query, self.key, self.value = dense(), dense(), dense()
    self.out = _dense(self.sizes.width, self.numerics)
    relative = self.sizes.relative
    if relative and not relative.shared:
      if 'c2p' in relative.terms:
        self.position_key = dense()
      if 'p2c' in relative.terms:
        self.position_query = dense()

  def project_positions(self, embedding: Float[Array, 'W D']) -> PositionProjections:
    """Keys and queries of relative positions."""
    shared, terms = self.sizes.relative.shared, self.sizes.relative.terms

    def heads(term, name):
      if term not in terms:
        return None
      projected = getattr(self, name if shared else f'position_{name}')(embedding)
      return jnp.swapaxes(self._heads(projected), 0, 1)

    return heads('c2p', 'key'), heads('p2c', 'query')

  def __call__(self, x, queries, positions, buckets, columns, mask):
    query, key, value = self.query(queries), self.key(x), self.value(x)
    query, key, value = (self._heads(y) for y in (query, key, value))
    scale = (self.sizes.head_size * self.sizes.terms) ** -0.5
    attended = attend_disentangled(query, key, value, positions, buckets, columns, mask, scale)
    return self.out(attended.reshape(*queries.shape[:2], -1))

  def _heads(self, x):
    return x.reshape(*x.shape[:-1], self.sizes.heads, self.sizes.head_size)


class EncoderFeedForward(nn.Module):
  """Two linear layers around an activation."""

  sizes: Sizes
  numerics: Numerics

  @nn.compact
  def __call__(self, x):
    hidden = _dense(self.sizes.hidden, self.numerics, name='up')(x)
    hidden = self.sizes.activate(hidden)
    return _dense(self.sizes.width, self.numerics, name='down')(hidden)


class Deberta(nn.Module):
  """The whole model; see `Encoder` for its methods."""

  sizes: Sizes
  numerics: Numerics

  def setup(self):
    sizes, numerics = self.sizes, self.numerics

    def embedding(count, width):
      return nn.Embed(count, width, numerics.compute, numerics.weights)

    def norm():
      return nn.LayerNorm(
        sizes.norm_epsilon, numerics.compute, numerics.weights, use_fast_variance=False
      )

    def per_layer(make):
      return [make() for _ in range(sizes.layers)]

    self.embed = embedding(sizes.vocabulary, sizes.embedded)
    if sizes.absolute:
      self.absolute = embedding(sizes.absolute, sizes.embedded)
    if sizes.types:
      self.types = embedding(sizes.types, sizes.embedded)
    if sizes.embedded != sizes.width:
      self.widen = _dense(sizes.width, numerics, use_bias=False)
    self.embed_norm = norm()
    if sizes.relative:
      self.relative = embedding(2 * sizes.relative.span, sizes.width)
      if sizes.relative.normed:
        self.relative_norm = norm()
    self.attentions = per_layer(lambda: DisentangledAttention(sizes, numerics))
    self.feed_forwards = per_layer(lambda: EncoderFeedForward(sizes, numerics))
    self.attention_norms, self.feed_forward_norms = per_layer(norm), per_layer(norm)
    if sizes.convolution:
      size, groups, _ = sizes.convolution
      self.convolution = nn.Conv(
        sizes.width,
        [size],
        padding=[((size - 1) // 2,) * 2],
        feature_group_count=groups,
        dtype=numerics.compute,
        param_dtype=numerics.weights,
      )
      self.convolution_norm = norm()

  def project_positions(self):
    if not self.sizes.relative:
      return ((None, None),) * self.sizes.layers
    embedding = self.relative.embedding.astype(self.numerics.compute)
    if self.sizes.relative.normed:
      embedding = self.relative_norm(embedding)
    return tuple(attention.project_positions(embedding) for attention in self.attentions)

  def __call__(self, projections, tokens, mask, columns):
    """Hidden states; the last layer computes them at the given columns only."""
    sizes, length = self.sizes, tokens.shape[1]
    if sizes.absolute and length > sizes.absolute:
      raise UserError(
        f'{length} tokens are more than the {sizes.absolute} that the model has positions for.'
      )
    buckets = np.zeros(0, int)
    if sizes.relative and sizes.relative.terms:
      buckets = sizes.relative.bucketed(length)
    everywhere = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    x = embedded = self._embed(tokens, mask)
    for number, positions in enumerate(projections):
      last = number == sizes.layers - 1
      wanted = columns if last and not self._convolves(number) else everywhere
      queries = _take_columns(x, wanted) if wanted is columns else x
      out = self.attentions[number](x, queries, positions, buckets, wanted, mask)
      out = self.attention_norms[number](queries + out)
      x = self.feed_forward_norms[number](out + self.feed_forwards[number](out))
      if self._convolves(number):
        x = self._convolve(embedded, x, mask)
        x = _take_columns(x, columns) if last else x
      x = sharding.shard_rows(x)
    return x

  def _embed(self, tokens, mask):
    x = self.embed(tokens)
    if self.sizes.absolute:
      x += self.absolute(jnp.arange(tokens.shape[1]))
    if self.sizes.types:
      x += self.types(jnp.zeros_like(tokens))
    if self.sizes.embedded != self.sizes.width:
      x = self.widen(x)
    return sharding.shard_rows(self.embed_norm(x) * mask[:, :, None])

  def _convolves(self, number):
    return self.sizes.convolution is not None and number == 0

  def _convolve(self, embedded, x, mask):
    mask = mask[:, :, None]
    added = self.sizes.convolution.activate(self.convolution(embedded) * mask)
    return self.convolution_norm(x + added) * mask

  def use_all(self, tokens, mask):
    """Uses every parameter once, so that `init` creates it."""
    return self(self.project_positions(), tokens, mask, tokens)


def _dense(width, numerics, **settings):
  return nn.Dense(width, dtype=numerics.compute, param_dtype=numerics.weights, **settings)


def _take_columns(x, columns):
  return jnp.take_along_axis(x, columns[:, :, None], axis=1)


def make_encoder(sizes: Sizes, numerics: Numerics = FLOAT32) -> Encoder:
  """An `Encoder` of the given sizes."""
  model = Deberta(sizes, numerics)

  def init(key):
    tokens = jnp.zeros((1, 1), jnp.int32)
    return model.init(key, tokens, tokens == 0, method='use_all')['params']

  def project_positions(params):
    return model.apply({'params': params}, method='project_positions')

  def encode(params, projections, tokens, mask, columns):
    return model.apply({'params': params}, projections, tokens, mask, columns)

  return Encoder(init, project_positions, encode)
