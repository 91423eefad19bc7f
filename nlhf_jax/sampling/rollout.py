"""Sampling responses from mixtures of slots, with one cache a slot.

A mixture is sampled one step at a time: for every prefix the next token comes from the normalised
geometric mean of its members' next-token distributions, each member having read the mixture's own
prefix (arXiv 2312.00886, appendix F.1). All mixtures asked for share the loop, so that a slot reads
the prompts once, and one batch a token, whatever number of mixtures it takes part in.

The loop is compiled, and comes back to the host when its caches are full, to have them grow, and
when at most a quarter of its prompts have a response that is not done, to go on with those: one
program for each size of both. On a mesh, and within another compiled program, it only grows.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from nlhf_jax import trees
from nlhf_jax.models import sharding
from nlhf_jax.models.decoder import Cache, Decoder, grow_cache, make_cache
from nlhf_jax.sampling import mixture_decoding
from nlhf_jax.sampling.token import UNFILTERED, Drawn, Filters, draw, entry
from nlhf_jax.structs import Mixture, Params, Prompts, Responses

Rollout = Callable[[Mapping[str, Params], Prompts, Array], tuple[Responses, ...]]

# Each step by four, so that there are few programs.
PLACES = 32  # of the first caches; the next ones are four times as long
PROMPTS = 8  # fewer are not gone on with on their own; else a quarter of them


class Loop(NamedTuple):
  """Where sampling is: of b prompts with R = count x mixtures responses each, `time` tokens each.

  `turn` counts steps, `which` says which prompts they are; `written` is as responses will be.
  """

  turn: Int[Array, '']
  which: Int[Array, 'b']
  done: Bool[Array, 'b R']
  time: Int[Array, 'b R']
  last: Int[Array, 'b R']
  caches: tuple[Cache, ...]
  written: Responses


def make_rollout(
  decoder: Decoder,
  mixtures: Sequence[Mixture],
  *,
  length: int,
  stop: int,
  count: int = 1,
  filters: Filters = UNFILTERED,
) -> Rollout:
  """A function that samples `count` responses a prompt from each mixture.

  Args:
    decoder: the network that every slot's parameters belong to.
    mixtures: what to sample from; weights are used as given and need not sum to one.
    length: most tokens in a response; sampling ends earlier when every response has stopped.
    stop: the token that ends a response. It also fills the places after it.
    count: responses a prompt, of each mixture.
    filters: temperature, top-k and top-p.

  Returns:
    (slots, prompts [B, P], key) -> one `Responses` [B, count, length] a mixture, with the
    log-probability of each token under the distribution it was drawn from. Slots that share a base
    are read together, so that its weights are read once a token.
  """
  mixtures = [{slot: mix[slot] for slot in mix if mix[slot]} for mix in mixtures]
  rows, ahead = len(mixtures) * count, mixture_decoding.drafts()
  after = partial(_after, length=length, stop=stop)
  real = partial(_real, length=length, stop=stop)

  def of(params):
    return mixture_decoding.make_streams(mixtures, count, ahead, shared='base' in params)

  @partial(jax.jit, static_argnames='places')
  def started(params, prompts, key, places):
    """The loop after the prompts and the first tokens."""
    size, said, read = len(prompts.tokens), {}, {}
    readers = of(params).readers
    for members in dict.fromkeys(tuple(reader.slots) for reader in readers):
      turns = trees.of_turns(params, members)
      tokens, mask = (jnp.repeat(leaf, len(members), axis=0) for leaf in prompts)
      hidden, reading = decoder.prefill(turns, tokens, mask)
      logits = decoder.logits(turns, hidden[:, -1]).reshape(size, len(members), -1)
      for number, slot in enumerate(members):
        said[slot], read[slot] = logits[:, number], reading
    caches = []
    for members, own in readers:
      reading = read[members[0]]
      if len(members) > 1:
        slot_of = np.array([members.index(stream.slot) for stream in own])
        reading = _of_prompts(reading, size, lambda leaf, of=slot_of: leaf[:, of])
      caches.append(make_cache(reading, size * count * len(own), places))
    blank = Responses(
      tokens=jnp.full((size, rows, length), stop, prompts.tokens.dtype),
      mask=jnp.zeros((size, rows, length), bool),
      log_probs=jnp.zeros((size, rows, length)),
      entropy=jnp.zeros((size, rows, length)),
    )
    none = jnp.zeros((size, rows), jnp.int32)
    which, last = jnp.arange(size), blank.tokens[..., 0]
    loop = Loop(jnp.int32(0), which, none > 0, none, last, tuple(caches), blank)
    logits = [sum(weight * said[slot] for slot, weight in mix.items()) for mix in mixtures]
    logits = jnp.repeat(jnp.stack(logits, axis=1), count, axis=1)
    uniform = jax.random.uniform(jax.random.fold_in(key, 0), (size, rows))
    drawn = draw(uniform, logits, filters)
    return after(loop, real(loop, Drawn(*(x[..., None] for x in drawn)), none + 1))

  @partial(jax.jit, static_argnames=('size', 'end', 'least'), donate_argnums=1)
  def gone_on(params, loop, key, size, end, least):
    """The loop once at most `least` prompts are live, or caches full; (how many are, whether full).

    Caches have `end` - 1 places, and are full when a live row may lack room for a turn. The last
    few tokens are not worth another program.
    """
    each = of(params)
    weights = mixture_decoding.weights(each, params)

    def step(loop):
      shape = (size, rows, each.numbers)
      uniform = jax.random.uniform(jax.random.fold_in(key, loop.turn), shape)[loop.which]
      drawn, real_count, caches = mixture_decoding.next_tokens(
        decoder, each, filters, weights, loop.caches, loop.last, loop.time - 1, uniform
      )
      return after(loop, real(loop, drawn, real_count))._replace(caches=caches)

    def live(loop):
      return jnp.sum(~jnp.all(loop.done, axis=1))

    def full(loop):
      return jnp.any(~loop.done & (loop.time + each.ahead > end)) & (end < length)

    def worthwhile(loop):
      slowest = jnp.min(jnp.where(loop.done, length, loop.time))
      some = live(loop) > jnp.where(slowest > length - PLACES, 0, least)
      return some & ~full(loop)

    loop = lax.while_loop(worthwhile, step, loop)
    return loop, (sharding.as_axes(live(loop)), sharding.as_axes(full(loop)))

  @partial(jax.jit, static_argnames='places')
  def with_room(loop, places):
    return loop._replace(caches=tuple(grow_cache(cache, places) for cache in loop.caches))

  @partial(jax.jit, static_argnames='least')
  def without_done(loop, least):
    """The loop of `least` prompts, with all that are live."""
    size = len(loop.which)
    chosen = jnp.argsort(jnp.all(loop.done, axis=1), stable=True)[:least]
    caches = _of_prompts(loop.caches, size, lambda leaf: leaf[chosen])
    kept = jax.tree.map(lambda leaf: leaf[chosen], loop._replace(turn=None, caches=None))
    return kept._replace(turn=loop.turn, caches=caches)

  @jax.jit
  def together(whole, loop):
    return jax.tree.map(lambda all, own: all.at[loop.which].set(own), whole, loop.written)

  @jax.jit
  def by_mixture(written):
    def of_mixture(leaf):
      return jnp.moveaxis(leaf.reshape(len(leaf), len(mixtures), count, length), 1, 0)

    shaped = jax.tree.map(of_mixture, written)
    return tuple(Responses(*leaves) for leaves in zip(*shaped, strict=True))

  def rollout(params, prompts, key):
    size, whole, ends = len(prompts.tokens), None, ends_of(length)
    given = jax.tree.leaves((params, prompts, key))
    on_host = not any(isinstance(leaf, jax.core.Tracer) for leaf in given)
    loop = started(params, prompts, key, places=max(ends[0] - 1, 1))
    for end in ends:
      if end != ends[0]:
        loop = with_room(loop, places=end - 1)
      while True:
        least = fewest(len(loop.which)) if on_host and length > PLACES else 0
        loop, (live, full) = gone_on(params, loop, key, size, end, least)
        if not least or bool(full) or int(live) == 0:
          break
        whole = loop.written if whole is None else together(whole, loop)
        loop = without_done(loop, least)
      if on_host and end != length and int(live) == 0:
        break
    return by_mixture(loop.written if whole is None else together(whole, loop))

  return rollout


def ends_of(length: int) -> list[int]:
  """At how many tokens caches are full: each of them has four times the room of the one before."""
  ends, room = [], PLACES
  while room + 1 < length:
    ends.append(room + 1)
    room *= 4
  return [*ends, length]


def fewest(size: int) -> int:
  """How few live prompts are gone on with on their own, of so many; 0 where that is never done."""
  least = size // 4
  return least if least >= PROMPTS and not sharding.on_mesh() else 0


def _after(loop: Loop, new: Responses, length: int, stop: int) -> Loop:
  """The loop after those of the tokens of `new`, [b, R, k], that are real: the first few."""
  places = loop.time[..., None] + jnp.arange(new.tokens.shape[-1])
  places = jnp.where(new.mask, places, length)
  put = jax.vmap(jax.vmap(lambda old, at, own: old.at[at].set(own, mode='drop')))
  written = jax.tree.map(lambda old, own: put(old, places, own), loop.written, new)
  count = jnp.sum(new.mask, axis=-1, dtype=jnp.int32)
  time = loop.time + count
  stopped = jnp.any(new.mask & (new.tokens == stop), axis=-1)
  return loop._replace(
    turn=loop.turn + 1,
    done=loop.done | stopped | (time == length),
    time=time,
    last=jnp.where(loop.done, stop, entry(new.tokens, jnp.maximum(count - 1, 0))),
    written=written,
  )


def _real(loop: Loop, drawn: Drawn, count: Int[Array, 'b R'], length: int, stop: int) -> Responses:
  """The first `count` drawn tokens of each row as responses, up to a stop and to the length."""
  places = jnp.arange(drawn.token.shape[-1])
  stops = drawn.token == stop
  mask = (jnp.cumsum(stops, axis=-1) - stops == 0) & (places < count[..., None])
  mask &= ~loop.done[..., None] & (loop.time[..., None] + places < length)
  tokens = jnp.where(mask, drawn.token, stop).astype(loop.last.dtype)
  return Responses(tokens, mask, *(jnp.where(mask, x, 0) for x in drawn[1:]))


def _of_prompts(tree, size: int, change: Callable[[Array], Array]):
  """A tree whose leaves have equally many rows for each of `size` prompts, changed prompt-wise."""

  def changed(leaf):
    rows = change(leaf.reshape(size, -1, *leaf.shape[1:]))
    return rows.reshape(-1, *leaf.shape[1:])

  return jax.tree.map(changed, tree)
