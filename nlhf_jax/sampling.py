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
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax import trees
from nlhf_jax.models import sharding
from nlhf_jax.models.transformer import Cache, Decoder, begin, grown
from nlhf_jax.structs import Mixture, Params, Prompts, Responses

Rollout = Callable[[Mapping[str, Params], Prompts, Array], tuple[Responses, ...]]

# Each step by four, so that there are few programs.
PLACES = 32  # of the first caches; the next ones are four times as long
PROMPTS = 8  # fewer are not gone on with on their own; else a quarter of them
BLOCK = 64  # tokens whose probabilities are added up together


class Filters(NamedTuple):
  """What is done to next-token logits, after mixing, before one is drawn.

  Training samples with none of them: the policy gradient's score function is that of the policy as
  it is. `top_k` keeps the k likeliest tokens (0: all of them), `top_p` the smallest set with at
  least that mass.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0


UNFILTERED = Filters()


class Reader(NamedTuple):
  """Slots that are read in one pass, and the rows of it: for each prompt and sample, a stream each.

  A stream is a slot's part in a mixture, (slot, number of the mixture).
  """

  slots: Sequence[str]
  streams: Sequence[tuple[str, int]]


class Loop(NamedTuple):
  """Where sampling is: of b prompts with R = count x mixtures responses each, `time` tokens.

  `which` says which prompts they are; `written` is as the responses will be, times first.
  """

  time: Int[Array, '']
  which: Int[Array, 'b']
  done: Bool[Array, 'b R']
  last: Int[Array, 'b R']
  caches: tuple[Cache, ...]
  written: Responses


def filtered(logits: Float[Array, '... V'], filters: Filters) -> Float[Array, '... V']:
  """Log-probabilities after temperature, top-k and top-p, in that order; -inf where cut."""
  log_p = jax.nn.log_softmax(logits / filters.temperature)
  if 0 < filters.top_k < log_p.shape[-1]:
    least = lax.top_k(log_p, filters.top_k)[0][..., -1:]
    log_p = jax.nn.log_softmax(jnp.where(log_p >= least, log_p, -jnp.inf))
  if filters.top_p < 1:
    falling = -jnp.sort(-log_p)
    before = jnp.cumsum(jnp.exp(falling), axis=-1) - jnp.exp(falling)
    least = jnp.min(jnp.where(before < filters.top_p, falling, jnp.inf), axis=-1, keepdims=True)
    log_p = jax.nn.log_softmax(jnp.where(log_p >= least, log_p, -jnp.inf))
  return log_p


class Drawn(NamedTuple):
  """A token a row, its log-probability, and the entropy of what it was drawn from, in nats."""

  token: Int[Array, '...']
  log_prob: Float[Array, '...']
  entropy: Float[Array, '...']


def draw(uniform: Float[Array, '...'], logits: Float[Array, '... V']) -> Drawn:
  """One token a row by inverting the cumulative sum at a uniform number in [0, 1).

  Probabilities are added up in blocks: first the block is found, then the token in it.
  """
  top = jnp.max(logits, axis=-1, keepdims=True)
  weights = jnp.exp(logits - top)
  unused = [(0, 0)] * (weights.ndim - 1) + [(0, -weights.shape[-1] % BLOCK)]
  blocks = jnp.pad(weights, unused).reshape(*weights.shape[:-1], -1, BLOCK)
  sums = jnp.sum(blocks, axis=-1)
  total = jnp.sum(sums, axis=-1)
  block, rest = _place(sums, uniform * total)
  within, _ = _place(_at(blocks, block[..., None], axis=-2), rest)
  token = BLOCK * block + within
  log_total = jnp.log(total) + top[..., 0]
  expected = jnp.sum(jnp.where(weights > 0, weights * logits, 0), axis=-1) / total
  return Drawn(token, _at(logits, token) - log_total, log_total - expected)


def _place(
  weights: Float[Array, '... n'], threshold: Float[Array, '...']
) -> tuple[Int[Array, '...'], Float[Array, '...']]:
  """Whose share of the weights' sum the threshold falls in, and how far into it.

  However sums are rounded, the weight there is above zero.
  """
  sums = jnp.cumsum(weights, axis=-1)
  threshold = jnp.minimum(threshold, sums[..., -1] * (1 - 2.0**-22))
  index = jnp.sum(sums <= threshold[..., None], axis=-1)
  places = jnp.where(weights > 0, jnp.arange(weights.shape[-1]), -1)
  index = _at(lax.cummax(places, axis=places.ndim - 1), index)
  before = jnp.where(index > 0, _at(sums, jnp.maximum(index - 1, 0)), 0)
  return index, jnp.maximum(threshold - before, 0)


def _at(x: Array, index: Int[Array, '...'], axis: int = -1) -> Array:
  """The entry of each row that its index names, along an axis that goes."""
  return jnp.squeeze(jnp.take_along_axis(x, index[..., None], axis=axis), axis)


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
  slots = sorted(set().union(*mixtures))

  def make_readers(params) -> list[Reader]:
    """One for all slots if they share a base, else one each."""
    together = [slots] if 'base' in params else [[slot] for slot in slots]
    return [
      Reader(
        members, [(slot, i) for slot in members for i, mix in enumerate(mixtures) if slot in mix]
      )
      for members in together
    ]

  def mixed(readers, of_streams):
    """Logits of every row, [b, R, V], from what each reader says of its streams, [b, ., count, V].

    While the samples of a prompt have nothing of their own, there may be one for all of them.
    """
    totals = [0.0] * len(mixtures)
    for reader, said in zip(readers, of_streams, strict=True):
      for number, (slot, i) in enumerate(reader.streams):
        totals[i] += mixtures[i][slot] * said[:, number]
    totals = [jnp.broadcast_to(x, (len(x), count, x.shape[-1])) for x in totals]
    return jnp.concatenate(totals, axis=1)

  def with_next(loop, logits, key, size):
    """The loop after the next token of each row, drawn from `logits`; `size` prompts began."""
    uniform = jax.random.uniform(jax.random.fold_in(key, loop.time), (size, loop.done.shape[1]))
    if filters != UNFILTERED:
      logits = filtered(logits, filters)
    drawn, live = draw(uniform[loop.which], logits), ~loop.done
    new = Responses(
      jnp.where(live, drawn.token, stop).astype(loop.last.dtype),
      live,
      jnp.where(live, drawn.log_prob, 0),
      jnp.where(live, drawn.entropy, 0),
    )
    return loop._replace(
      time=loop.time + 1,
      done=loop.done | (new.tokens == stop),
      last=new.tokens,
      written=jax.tree.map(lambda old, row: old.at[loop.time].set(row), loop.written, new),
    )

  @partial(jax.jit, static_argnames='places')
  def started(params, prompts, key, places):
    """The loop after the prompts and the first tokens."""
    size, readers, caches, of_streams = len(prompts.tokens), make_readers(params), [], []
    for members, streams in readers:
      turns = trees.of_turns(params, members)
      tokens, mask = (jnp.repeat(leaf, len(members), axis=0) for leaf in prompts)
      hidden, reading = decoder.read(turns, tokens, mask)
      logits = decoder.logits(turns, hidden[:, -1]).reshape(size, len(members), 1, -1)
      slot_of = np.array([members.index(slot) for slot, _ in streams])
      of_streams.append(logits[:, slot_of])
      if len(members) > 1:
        reading = _of_prompts(reading, size, lambda rows, of=slot_of: rows[:, of])
      caches.append(begin(reading, size * count * len(streams), places))
    rows = (size, count * len(mixtures))
    blank = Responses(
      tokens=jnp.full((length, *rows), stop, prompts.tokens.dtype),
      mask=jnp.zeros((length, *rows), bool),
      log_probs=jnp.zeros((length, *rows)),
      entropy=jnp.zeros((length, *rows)),
    )
    time, which, done = jnp.zeros((), jnp.int32), jnp.arange(size), jnp.zeros(rows, bool)
    loop = Loop(time, which, done, blank.tokens[0], tuple(caches), blank)
    return with_next(loop, mixed(readers, of_streams), key, size)

  @partial(jax.jit, static_argnames=('size', 'end', 'least'), donate_argnums=1)
  def gone_on(params, loop, key, size, end, least):
    """The loop at `end`, or once no more than `least` prompts are live; (how many are, time).

    The last few tokens are not worth another program.
    """
    readers = make_readers(params)
    turns = [
      trees.of_turns(params, [slot for slot, _ in streams for _ in range(count)])
      for _, streams in readers
    ]

    def live(loop):
      return jnp.sum(~jnp.all(loop.done, axis=1))

    def step(loop):
      last = loop.last.reshape(-1, len(mixtures), count)
      caches, of_streams = [], []
      for reader, params, cache in zip(readers, turns, loop.caches, strict=True):
        tokens = last[:, np.array([i for _, i in reader.streams])]
        hidden, cache = decoder.extend(params, tokens.reshape(-1), cache)
        of_streams.append(decoder.logits(params, hidden).reshape(*tokens.shape, -1))
        caches.append(cache)
      loop = loop._replace(caches=tuple(caches))
      return with_next(loop, mixed(readers, of_streams), key, size)

    def worthwhile(loop):
      some = live(loop) > jnp.where(loop.time > length - PLACES, 0, least)
      return (loop.time < end) & some

    loop = lax.while_loop(worthwhile, step, loop)
    return loop, (sharding.as_axes(live(loop)), loop.time)

  @partial(jax.jit, static_argnames='places')
  def with_room(loop, places):
    return loop._replace(caches=tuple(grown(cache, places) for cache in loop.caches))

  @partial(jax.jit, static_argnames='least')
  def without_done(loop, least):
    """The loop of `least` prompts, with all that are live."""
    size = len(loop.which)
    chosen = jnp.argsort(jnp.all(loop.done, axis=1), stable=True)[:least]
    which, done, last = (leaf[chosen] for leaf in (loop.which, loop.done, loop.last))
    caches = _of_prompts(loop.caches, size, lambda rows: rows[chosen])
    written = jax.tree.map(lambda leaf: leaf[:, chosen], loop.written)
    return Loop(loop.time, which, done, last, caches, written)

  @jax.jit
  def together(whole, loop):
    return jax.tree.map(lambda all, own: all.at[:, loop.which].set(own), whole, loop.written)

  @jax.jit
  def by_mixture(written):
    def of_mixture(leaf):
      _, size, _ = leaf.shape
      return jnp.moveaxis(leaf.reshape(length, size, len(mixtures), count), (2, 0), (0, 3))

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
        loop, (live, time) = gone_on(params, loop, key, size, end, least)
        if not least or int(time) == end or int(live) == 0:
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


def _of_prompts(tree, size: int, change: Callable[[Array], Array]):
  """A tree whose leaves have equally many rows for each of `size` prompts, changed prompt-wise."""

  def changed(leaf):
    if leaf.ndim == 0:
      return leaf
    rows = change(leaf.reshape(size, -1, *leaf.shape[1:]))
    return rows.reshape(-1, *leaf.shape[1:])

  return jax.tree.map(changed, tree)
