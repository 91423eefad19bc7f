"""A language model as four functions and an explicit cache: all that other packages know of one.

`transformer.make_decoder` gives the decoder of the published families; `decoder_from_apply` turns
any causal network into one.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from nlhf_jax.models import sharding
from nlhf_jax.models.head import Head
from nlhf_jax.structs import Params


class PrefillCache(NamedTuple):
  """Keys and values of whole sequences, one pair of arrays a layer; `mask` marks real tokens.

  Heads come before tokens, as decoding reads them.
  """

  keys: tuple[Float[Array, 'N G P C'], ...]
  values: tuple[Float[Array, 'N G P C'], ...]
  mask: Bool[Array, 'N P']


class Cache(NamedTuple):
  """Keys and values that N rows attend to while they continue M prompts.

  Each prompt is stored once, however many rows continue it: row n continues prompt n // (N / M).
  Each row has room for S tokens of its own, of which the first `length` are filled; lowering
  `length` takes tokens back.
  """

  prompts: PrefillCache  # of M prompts
  keys: tuple[Float[Array, 'N G S C'], ...]
  values: tuple[Float[Array, 'N G S C'], ...]
  length: Int[Array, 'N']


def unchanged(params: Params) -> Params:
  """The parameters, or slots, of a decoder that has them in one layout and in one type."""
  return params


class Decoder(NamedTuple):
  """A causal language model as pure functions of its parameters.

  - `init(key)` returns parameters.
  - `prefill(params, tokens [N, T], mask [N, T])` reads whole sequences, and returns hidden states
    [N, T, D] and a `PrefillCache`.
  - `decode(params, tokens [N, T], cache)` appends T tokens to each row, and returns hidden states
    [N, T, D] and the longer cache. Tokens beyond the cache's room are dropped, and their hidden
    states are meaningless.
  - `logits(params, hidden [..., D])` returns float32 logits [..., V].
  - `for_decoding(slots)` returns slot -> parameters in the layout that `decode` reads fastest.
  - `cast(params)` returns them in the types that the functions compute in, where these are smaller.
  - `head` is the layer that `logits` applies; None if it is another function.
  - `shapes()` returns the shapes and types of what `init` returns; None if only `init` knows them.
  - `heads` is the number of its query heads, which devices can share; None if it has none.
  """

  init: Callable[[Array], Params]
  prefill: Callable[[Params, Array, Array], tuple[Array, PrefillCache]]
  decode: Callable[[Params, Array, Cache], tuple[Array, Cache]]
  logits: Callable[[Params, Array], Array]
  for_decoding: Callable[[Mapping[str, Params]], Mapping[str, Params]] = unchanged
  cast: Callable[[Params], Params] = unchanged
  head: Head | None = None
  shapes: Callable[[], Params] | None = None
  heads: int | None = None


def parameter_shapes(decoder: Decoder) -> Params:
  """The shapes and types of the decoder's parameters; none is computed."""
  # The key is made in the trace: plans have no devices for it.
  make = lambda: decoder.init(jax.random.key(0))
  return decoder.shapes() if decoder.shapes else jax.eval_shape(make)


@functools.cache  # equal decoders share compiled programs
def temper(decoder: Decoder, temperature: float) -> Decoder:
  """The decoder whose next tokens have the distribution of `decoder` at a temperature."""
  if temperature == 1:
    return decoder
  head = decoder.head
  return decoder._replace(
    logits=lambda params, hidden: decoder.logits(params, hidden) / temperature,
    head=head and head._replace(finish=lambda products: head.finish(products) / temperature),
  )


def make_cache(prompts: PrefillCache, rows: int, room: int) -> Cache:
  """An empty cache for `rows` rows, a multiple of the prompts, with room for `room` tokens each."""

  def empty(like):
    _, groups, _, size = like.shape
    return sharding.shard_rows(jnp.zeros((rows, groups, room, size), like.dtype), 'tensor')

  keys, values = (tuple(map(empty, pair)) for pair in (prompts.keys, prompts.values))
  return Cache(prompts, keys, values, jnp.zeros(rows, jnp.int32))


def grow_cache(cache: Cache, room: int) -> Cache:
  """The same cache with room for `room` tokens a row."""

  def longer(buffer):
    return jnp.pad(buffer, ((0, 0), (0, 0), (0, room - buffer.shape[2]), (0, 0)))

  keys, values = (tuple(map(longer, pair)) for pair in (cache.keys, cache.values))
  return cache._replace(keys=keys, values=values)


def append_to_cache(
  buffer: Shaped[Array, 'N G S C'], new: Shaped[Array, 'N T G C'], columns: Int[Array, 'N T']
) -> Shaped[Array, 'N G S C']:
  """The buffer with new keys or values at each row's columns; those beyond its room are dropped."""

  @jax.vmap
  def append(row, new, columns):
    return row.at[:, columns].set(jnp.swapaxes(new, 0, 1), mode='drop')

  return append(buffer, new, columns)


def decoder_from_apply(
  hidden: Callable[[Params, Int[Array, 'N T']], Float[Array, 'N T D']],
  logits: Callable[[Params, Float[Array, '... D']], Float[Array, '... V']],
  init: Callable[[Array], Params] | None = None,
) -> Decoder:
  """A `Decoder` from a causal network that has no cache, such as a recurrent one.

  The cache holds the tokens so far, and every decoding step runs the network over all of them: T
  tokens cost O(T^2). Rows are packed before the network sees them: real tokens come first and
  padding after them, where it cannot change the state at a real token. The network therefore needs
  no mask, and its positions count from the first real token.

  Args:
    hidden: (params, tokens [N, T]) -> hidden states [N, T, D]; the state at a token may depend on
      that token and those before it only.
    logits: (params, hidden [..., D]) -> next-token logits [..., V] of any float type.
    init: key -> parameters; only `Decoder.init` uses it.
  """

  def run(params, tokens, mask):
    """Hidden states of rows whose padding may be anywhere, packed for the network and put back."""
    order = jnp.argsort(~mask, axis=1, stable=True)
    packed = hidden(params, jnp.take_along_axis(tokens, order, axis=1))
    return jnp.take_along_axis(packed, jnp.argsort(order, axis=1)[:, :, None], axis=1)

  def prefill(params, tokens, mask):
    # Tokens are stored as the only keys, with one head of size 1; there are no values.
    return run(params, tokens, mask), PrefillCache((tokens[:, None, :, None],), (), mask)

  def decode(params, tokens, cache):
    (rows, count), (buffer,) = tokens.shape, cache.keys
    columns = cache.length[:, None] + jnp.arange(count)
    buffer = append_to_cache(buffer, tokens[:, :, None, None].astype(buffer.dtype), columns)
    repeats = rows // len(cache.prompts.mask)
    prompts, prompt_mask = (
      jnp.repeat(x, repeats, axis=0)
      for x in (cache.prompts.keys[0][:, 0, :, 0], cache.prompts.mask)
    )
    filled = jnp.arange(buffer.shape[2]) <= columns[:, -1:]
    states = run(
      params,
      jnp.concatenate([prompts, buffer[:, 0, :, 0]], axis=1),
      jnp.concatenate([prompt_mask, filled], axis=1),
    )
    columns = jnp.minimum(prompts.shape[1] + columns, states.shape[1] - 1)
    longer = cache._replace(keys=(buffer,), length=cache.length + count)
    return jnp.take_along_axis(states, columns[:, :, None], axis=1), longer

  def float_logits(params, hidden):
    return logits(params, hidden).astype(jnp.float32)

  return Decoder(init, prefill, decode, float_logits)
