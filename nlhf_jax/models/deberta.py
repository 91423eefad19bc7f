"""DeBERTa, an encoder with disentangled attention, as pure functions of its parameters.

Versions 2 and 3 (arXiv 2006.03654, 2111.09543), as `transformers` has them: what a token says of
another is the sum of content on content, content on place (c2p) and place on content (p2c), places
being relative and far ones sharing buckets. The heads it was pretrained with are left out.
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
from nlhf_jax.models.transformer import ACTIVATIONS, FLOAT32, Numerics
from nlhf_jax.structs import Params

ACTIVATE = {'tanh': jnp.tanh} | {
  name: ACTIVATIONS[ours] for name, ours in architectures.ACTIVATIONS.items()
}


class RelativePositions(NamedTuple):
  """Relative places: told apart up to `buckets`/2 tokens, by logarithm from there to `farthest`.

  With 0 buckets all of them are, up to `farthest`.
  """

  terms: tuple[str, ...]  # c2p, p2c: content on place, place on content
  farthest: int
  buckets: int
  shared: bool  # the projections of contents are those of places too
  normed: bool

  @property
  def span(self) -> int:
    """Rows of the embedding to each side."""
    return self.buckets or self.farthest

  def bucketed(self, length: int) -> Int[np.ndarray, 'distances']:
    """The row of the embedding for each distance from 1 - length to length - 1."""
    distance = np.arange(1 - length, length)
    if self.buckets:
      middle = self.buckets // 2
      # The logarithm as float32 has it, as where the weights were trained.
      far = np.maximum(np.abs(distance), middle).astype(np.float32) / np.float32(middle)
      octaves = np.log(far) / np.log(np.float32((self.farthest - 1) / middle))
      bucket = np.ceil(octaves * np.float32(middle - 1)).astype(int) + middle
      distance = np.where(np.abs(distance) <= middle, distance, np.sign(distance) * bucket)
    return np.clip(distance + self.span, 0, 2 * self.span - 1)


class Convolution(NamedTuple):
  """What the first layer adds of each token's neighbours."""

  size: int
  groups: int
  activate: Callable[[Array], Array]


class Sizes(NamedTuple):
  """A DeBERTa encoder. `embedded` is the width of embeddings, `hidden` that inside a block."""

  vocabulary: int
  embedded: int
  width: int
  layers: int
  heads: int
  head_size: int
  hidden: int
  activate: Callable[[Array], Array]
  norm_epsilon: float
  terms: int  # that attention is made of: its logits have the variance of so many
  relative: RelativePositions | None
  absolute: int = 0  # places that have an embedding of their own
  types: int = 0  # of tokens; here all are of the first
  convolution: Convolution | None = None


class Encoder(NamedTuple):
  """An encoder as functions.

  `init(key)` gives parameters; `places(params)` what all texts share, to be computed once: each
  layer's keys and queries of relative places, [H, W, C] or nothing; `read(params, places, tokens
  [N, S], mask [N, S], at [N, Q])` the last hidden states at the given positions, [N, Q, D].
  """

  init: Callable[[Array], Params]
  places: Callable[[Params], tuple]
  read: Callable[[Params, tuple, Array, Array, Array], Array]


def sizes_from_config(config: Any) -> Sizes:
  """The sizes of a `transformers` config of type `deberta-v2`.

  Raises:
    UserError: if it asks for something that is not supported.
  """
  known = architectures.lookup
  terms = tuple(term for term in ('c2p', 'p2c') if term in (config.pos_att_type or ()))
  relative = convolution = None
  if config.relative_attention:
    longest = config.max_relative_positions
    relative = RelativePositions(
      terms=terms,
      farthest=config.max_position_embeddings if longest < 1 else longest,
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


# Keys and queries of the relative places, [H, W, C], of what attention has of them.
PositionProjections = tuple[Float[Array, 'H W C'] | None, Float[Array, 'H W C'] | None]


def attend_disentangled(
  query: Float[Array, 'N Q H C'],
  key: Float[Array, 'N S H C'],
  value: Float[Array, 'N S H C'],
  places: PositionProjections,
  buckets: Int[np.ndarray, 'distances'],
  at: Int[Array, 'N Q'],
  mask: Bool[Array, 'N S'],
  scale: float,
) -> Float[Array, 'N Q H C']:
  """Each query's mean of the values, weighted by softmax over s of scale (q.k + q.K[b] + Q[b].k).

  b is the bucket of at - s (arXiv 2006.03654, eq. 4, without places on places). A CPU takes one
  head of one row at a time, whose logits [Q, S] then stay in its cache: that takes half as long as
  all at once, which is how accelerators have them.

  Args:
    query: of the tokens at `at`.
    key: of all tokens.
    value: of all tokens.
    places: K and Q, each [H, W, C], of what there is of them.
    buckets: of each distance from 1 - S to S - 1; empty where there are no places.
    at: where the queries are.
    mask: which tokens are real.
    scale: of the logits.
  """
  length = key.shape[1]
  first, end = (buckets.min(), buckets.max() + 1) if buckets.size else (0, 0)
  places = jax.tree.map(lambda x: x[:, first:end], places)  # those within reach
  alone = platform() == 'cpu' and not sharding.has_mesh()
  each = lax.map if alone else lambda function, xs: jax.vmap(function)(xs)

  def of_row(row):
    *heads, at, mask = row
    bucket = None
    if buckets.size:
      distance = at[:, None] - jnp.arange(length)
      bucket = _taken(jnp.asarray(buckets - first), distance + length - 1)
    return each(lambda head: _of_head(*head, bucket, mask, scale), (*heads, *places))

  heads = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
  return jnp.swapaxes(each(of_row, (*heads, at, mask)), 1, 2)


def _of_head(query, key, value, keys, queries, bucket, mask, scale):
  """`attend` for one head of one row; `bucket` [Q, S]."""

  def product(one, other):
    return jnp.matmul(one, other, preferred_element_type=jnp.float32)

  logits = product(query, key.T)
  if keys is not None:
    logits += _taken(product(query, keys.T), bucket, axis=1)
  if queries is not None:
    logits += _taken(product(queries, key.T), bucket, axis=0)
  logits = jnp.where(mask, scale * logits, MASKED)
  weights = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
  mixed = product(weights.astype(value.dtype), value)
  return (mixed / jnp.sum(weights, axis=1, keepdims=True)).astype(value.dtype)


def _taken(x, index, axis=None):
  """x at an index that is known to be within it."""
  if axis is None:
    return x.at[index].get(mode='promise_in_bounds')
  return jnp.take_along_axis(x, index, axis, mode='promise_in_bounds')


class DisentangledAttention(nn.Module):
  """Disentangled attention of some tokens to all."""

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
        self.place_key = dense()
      if 'p2c' in relative.terms:
        self.place_query = dense()

  def places(self, embedding: Float[Array, 'W D']) -> PositionProjections:
    """Keys and queries of relative places."""
    shared, terms = self.sizes.relative.shared, self.sizes.relative.terms

    def heads(term, name):
      if term not in terms:
        return None
      projected = getattr(self, name if shared else f'place_{name}')(embedding)
      return jnp.swapaxes(self._heads(projected), 0, 1)

    return heads('c2p', 'key'), heads('p2c', 'query')

  def __call__(self, x, asking, places, buckets, at, mask):
    query, key, value = self.query(asking), self.key(x), self.value(x)
    query, key, value = (self._heads(y) for y in (query, key, value))
    scale = (self.sizes.head_size * self.sizes.terms) ** -0.5
    mixed = attend_disentangled(query, key, value, places, buckets, at, mask, scale)
    return self.out(mixed.reshape(*asking.shape[:2], -1))

  def _heads(self, x):
    return x.reshape(*x.shape[:-1], self.sizes.heads, self.sizes.head_size)


class EncoderFeedForward(nn.Module):
  """A hidden layer."""

  sizes: Sizes
  numerics: Numerics

  @nn.compact
  def __call__(self, x):
    hidden = _dense(self.sizes.hidden, self.numerics, name='up')(x)
    hidden = self.sizes.activate(hidden)
    return _dense(self.sizes.width, self.numerics, name='down')(hidden)


class Deberta(nn.Module):
  """The whole encoder; see `Encoder` for its methods."""

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

    def each(make):
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
    self.attentions = each(lambda: DisentangledAttention(sizes, numerics))
    self.feed_forwards = each(lambda: EncoderFeedForward(sizes, numerics))
    self.attention_norms, self.feed_forward_norms = each(norm), each(norm)
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

  def places(self):
    if not self.sizes.relative:
      return ((None, None),) * self.sizes.layers
    embedding = self.relative.embedding.astype(self.numerics.compute)
    if self.sizes.relative.normed:
      embedding = self.relative_norm(embedding)
    return tuple(attention.places(embedding) for attention in self.attentions)

  def __call__(self, places, tokens, mask, at):
    """Reads tokens; the last layer asks for those at the given positions only."""
    sizes, length = self.sizes, tokens.shape[1]
    if sizes.absolute and length > sizes.absolute:
      raise UserError(
        f'{length} tokens are more than the {sizes.absolute} that the model has positions for.'
      )
    buckets = np.zeros(0, int)
    if sizes.relative and sizes.relative.terms:
      buckets = sizes.relative.bucketed(length)
    everywhere = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    x = embedded = self._embedded(tokens, mask)
    for number, of_layer in enumerate(places):
      last = number == sizes.layers - 1
      wanted = at if last and not self._convolves(number) else everywhere
      asking = _at(x, wanted) if wanted is at else x
      said = self.attentions[number](x, asking, of_layer, buckets, wanted, mask)
      said = self.attention_norms[number](asking + said)
      x = self.feed_forward_norms[number](said + self.feed_forwards[number](said))
      if self._convolves(number):
        x = self._convolved(embedded, x, mask)
        x = _at(x, at) if last else x
      x = sharding.shard_rows(x)
    return x

  def _embedded(self, tokens, mask):
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

  def _convolved(self, embedded, x, mask):
    mask = mask[:, :, None]
    beside = self.sizes.convolution.activate(self.convolution(embedded) * mask)
    return self.convolution_norm(x + beside) * mask

  def all(self, tokens, mask):
    """Uses every parameter once, so that `init` makes it."""
    return self(self.places(), tokens, mask, tokens)


def _dense(width, numerics, **settings):
  return nn.Dense(width, dtype=numerics.compute, param_dtype=numerics.weights, **settings)


def _at(x, at):
  return jnp.take_along_axis(x, at[:, :, None], axis=1)


def make_encoder(sizes: Sizes, numerics: Numerics = FLOAT32) -> Encoder:
  """An `Encoder` of the given sizes."""
  model = Deberta(sizes, numerics)

  def init(key):
    tokens = jnp.zeros((1, 1), jnp.int32)
    return model.init(key, tokens, tokens == 0, method='all')['params']

  def places(params):
    return model.apply({'params': params}, method='places')

  def read(params, places, tokens, mask, at):
    return model.apply({'params': params}, places, tokens, mask, at)

  return Encoder(init, places, read)
