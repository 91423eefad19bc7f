"""Sampling responses from mixtures of slots, in one compiled loop with one cache a slot.

A mixture is sampled one step at a time: for every prefix the next token comes from the normalised
geometric mean of its members' next-token distributions, each member having read the mixture's own
prefix (arXiv 2312.00886, appendix F.1). All mixtures asked for share the loop, so that a slot reads
the prompts once, and one batch a token, whatever number of mixtures it takes part in.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nlhf_jax import trees
from nlhf_jax.models.transformer import Cache, Decoder
from nlhf_jax.structs import Mixture, Params, Prompts, Responses

Rollout = Callable[[Mapping[str, Params], Prompts, Array], tuple[Responses, ...]]


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
  """Slots that are read in one pass, and the rows of it: a block a stream.

  A stream is a slot's part in a mixture, (slot, number of the mixture). `of_slots` and `of_streams`
  are parameters for a block of rows a slot, and a stream.
  """

  slots: Sequence[str]
  streams: Sequence[tuple[str, int]]
  of_slots: Params
  of_streams: Params


def filtered(logits: Float[Array, 'N V'], filters: Filters) -> Float[Array, 'N V']:
  """Log-probabilities after temperature, top-k and top-p, in that order; -inf where cut."""
  log_p = jax.nn.log_softmax(logits / filters.temperature)
  if 0 < filters.top_k < log_p.shape[-1]:
    least = lax.top_k(log_p, filters.top_k)[0][:, -1:]
    log_p = jax.nn.log_softmax(jnp.where(log_p >= least, log_p, -jnp.inf))
  if filters.top_p < 1:
    falling = -jnp.sort(-log_p)
    before = jnp.cumsum(jnp.exp(falling), axis=-1) - jnp.exp(falling)
    least = jnp.min(jnp.where(before < filters.top_p, falling, jnp.inf), axis=-1, keepdims=True)
    log_p = jax.nn.log_softmax(jnp.where(log_p >= least, log_p, -jnp.inf))
  return log_p


def draw(key: Array, log_p: Float[Array, 'N V']) -> Int[Array, 'N']:
  """One token a row by inverting the cumulative sum: one random number a row, not V."""
  cumulative = jnp.cumsum(jnp.exp(log_p), axis=-1)
  threshold = jax.random.uniform(key, (log_p.shape[0], 1)) * cumulative[:, -1:]
  return jnp.sum(cumulative <= threshold, axis=-1)


def make_rollout(
  decoder: Decoder,
  mixtures: Sequence[Mixture],
  *,
  length: int,
  stop: int,
  count: int = 1,
  filters: Filters = UNFILTERED,
) -> Rollout:
  """A jitted function that samples `count` responses a prompt from each mixture.

  Args:
    decoder: the network that every slot's parameters belong to.
    mixtures: what to sample from; weights are used as given and need not sum to one.
    length: most tokens in a response; the loop ends earlier when every response has stopped.
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
    readers = []
    for members in together:
      streams = [(slot, i) for slot in members for i, mix in enumerate(mixtures) if slot in mix]
      of_streams = trees.of_blocks(params, [slot for slot, _ in streams])
      readers.append(Reader(members, streams, trees.of_blocks(params, members), of_streams))
    return readers

  def read_prompts(reader, prompts):
    """A cache for the reader's rows; the last prompt token is left for the loop to read."""
    (size, places), members = prompts.tokens.shape, len(reader.slots)
    tokens, mask = (jnp.tile(leaf[:, :-1], (members, 1)) for leaf in prompts)
    empty = decoder.empty(size * members, places + length)
    _, cache = decoder.read(reader.of_slots, tokens, mask, empty)

    def spread(leaf):
      """From a block of prompts a slot to a block of prompts x count a stream."""
      blocks = jnp.split(leaf, members)
      copies = [blocks[reader.slots.index(slot)] for slot, _ in reader.streams]
      return jnp.repeat(jnp.concatenate(copies), count, axis=0)

    return jax.tree.map(lambda leaf: leaf if leaf.ndim == 0 else spread(leaf), cache)

  def next_logits(readers, caches: Sequence[Cache], last):
    """Reads each row's last token and mixes what the slots say comes next."""
    last = jnp.split(last, len(mixtures))
    mixed = [0.0] * len(mixtures)
    grown = []
    for reader, cache in zip(readers, caches, strict=True):
      tokens = jnp.concatenate([last[i] for _, i in reader.streams])[:, None]
      hidden, cache = decoder.read(reader.of_streams, tokens, jnp.ones_like(tokens, bool), cache)
      grown.append(cache)
      said = jnp.split(decoder.logits(reader.of_streams, hidden[:, 0]), len(reader.streams))
      for (slot, i), logits in zip(reader.streams, said, strict=True):
        mixed[i] += mixtures[i][slot] * logits
    return jnp.concatenate(mixed), grown

  def rollout(params, prompts, key):
    readers = make_readers(params)
    size = prompts.tokens.shape[0]
    rows = size * count * len(mixtures)
    last = jnp.tile(jnp.repeat(prompts.tokens[:, -1], count), len(mixtures))
    blank = Responses(
      tokens=jnp.full((length, rows), stop, last.dtype),
      mask=jnp.zeros((length, rows), bool),
      log_probs=jnp.zeros((length, rows)),
      entropy=jnp.zeros((length, rows)),
    )

    def unfinished(loop):
      time, done, *_ = loop
      return (time < length) & ~jnp.all(done)

    def step(loop):
      time, done, last, caches, responses = loop
      logits, caches = next_logits(readers, caches, last)
      log_p = filtered(logits, filters)
      token = draw(jax.random.fold_in(key, time), log_p).astype(last.dtype)
      chosen = jnp.take_along_axis(log_p, token[:, None], axis=-1)[:, 0]
      entropy = -jnp.sum(jnp.exp(log_p) * jnp.maximum(log_p, jnp.finfo(log_p.dtype).min), axis=-1)
      live = ~done
      new = Responses(
        jnp.where(live, token, stop), live, jnp.where(live, chosen, 0), jnp.where(live, entropy, 0)
      )
      responses = jax.tree.map(lambda old, row: old.at[time].set(row), responses, new)
      return time + 1, done | (new.tokens == stop), new.tokens, caches, responses

    caches = [read_prompts(reader, prompts) for reader in readers]
    start = (jnp.zeros((), jnp.int32), jnp.zeros(rows, bool), last, caches, blank)
    *_, responses = lax.while_loop(unfinished, step, start)

    def of_stream(leaf):
      return leaf.T.reshape(len(mixtures), size, count, length)

    shaped = jax.tree.map(of_stream, responses)
    return tuple(Responses(*leaves) for leaves in zip(*shaped, strict=True))

  return jax.jit(rollout)
