"""The streams of mixtures: what each slot reads, who drafts the next tokens, and who checks them.

Token by token, all members of a mixture read the last token, and the next one is drawn from the sum
of their logits. On accelerators, weights that members have of their own are not all read for every
token: one member drafts a few tokens, the others read those at once, and each is kept with
probability min(1, mixture / draft); in place of the first that is not comes a draw from what the
mixture has more of (arXiv 2211.17192). Tokens are the mixture's whatever the draft is like. It pays
while drafts are near: of two slots, each read as fast as the other, where more than 7 of 10 are
kept.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from nlhf_jax import trees
from nlhf_jax.models.decoder import Cache, Decoder
from nlhf_jax.sampling.token import Drawn, Filters, draw, filtered, verified
from nlhf_jax.structs import Mixture, Params

DRAFTS = 4  # tokens that are read at once by members that did not draft them


def drafts() -> int:
  """How many tokens are drafted before others read them: 1 on a CPU, where every row costs."""
  return 1 if jax.default_backend() == 'cpu' else DRAFTS


class Stream(NamedTuple):
  """A slot's part in a mixture, by number, and what its logits weigh where they are added up."""

  slot: str
  mixture: int
  weight: float


class Reader(NamedTuple):
  """Slots that are read in one pass; its rows are the streams of each prompt and sample."""

  slots: Sequence[str]
  streams: Sequence[Stream]


class Streams(NamedTuple):
  """All streams of some mixtures of `count` rows each: R = mixtures x count rows a prompt.

  Those who draft say the next `ahead` tokens one by one, those who check read them at once.
  """

  mixtures: Sequence[Mixture]
  count: int
  drafting: Sequence[Reader]
  checking: Sequence[Reader]
  ahead: int

  @property
  def readers(self) -> list[Reader]:
    """Those who draft, then those who check."""
    return [*self.drafting, *self.checking]

  @property
  def numbers(self) -> int:
    """Random numbers that `next_tokens` takes a row."""
    return 2 * self.ahead + 1 if self.checking else 1


def make_streams(mixtures: Sequence[Mixture], count: int, ahead: int, shared: bool) -> Streams:
  """Who reads what; where slots share a base they all draft, and are read together."""
  parts = sorted((slot, i) for i, mixture in enumerate(mixtures) for slot in mixture)
  every = [Stream(slot, i, mixtures[i][slot]) for slot, i in parts]
  if shared:
    together = Reader(sorted(set().union(*mixtures)), every)
    return Streams(mixtures, count, [together], [], 1)
  if ahead == 1:
    return Streams(mixtures, count, _by_slot(every), [], 1)
  drafters = _drafters(mixtures)
  own = [stream for stream in every if stream.slot == drafters[stream.mixture]]
  drafting = [stream._replace(weight=_draft_weight(mixtures[stream.mixture])) for stream in own]
  checking = _by_slot([stream for stream in every if stream not in own])
  return Streams(mixtures, count, _by_slot(drafting), checking, ahead if checking else 1)


def weights(streams: Streams, params: Mapping[str, Params]) -> list[Params]:
  """What each reader reads its rows with."""
  return [
    trees.of_turns(params, [stream.slot for stream in reader.streams for _ in range(streams.count)])
    for reader in streams.readers
  ]


def next_tokens(
  decoder: Decoder,
  streams: Streams,
  filters: Filters,
  params: Sequence[Params],
  caches: Sequence[Cache],
  last: Int[Array, 'b R'],
  known: Int[Array, 'b R'],
  uniform: Float[Array, 'b R n'],
) -> tuple[Drawn, Int[Array, 'b R'], tuple[Cache, ...]]:
  """The next tokens of every row.

  Args:
    decoder: the network that all parameters belong to.
    streams: who reads what.
    filters: temperature, top-k and top-p.
    params: of each reader, of `weights`.
    caches: of each reader.
    last: the token of each row that has not been read.
    known: how many of its tokens have been.
    uniform: numbers in [0, 1), n = `streams.numbers`.

  Returns:
    `ahead` tokens a row, [b, R, ahead]; how many of them, the first ones, are the mixture's; and
    the caches after all of them.
  """
  split = len(streams.drafting)
  caches = [
    cache._replace(length=_of_reader(reader, _apart(streams, known)).reshape(-1))
    for reader, cache in zip(streams.readers, caches, strict=True)
  ]
  several = _of_several(streams.mixtures)

  def draft(now, number):
    """One more token a row: what was drawn, and of what logits where they are to be checked."""
    last, caches = now
    said, caches = _heard(
      decoder, streams, streams.drafting, params[:split], caches, last[..., None]
    )
    logits = jnp.stack([said[i][:, :, 0] for i in range(len(streams.mixtures))], axis=1)
    drawn = draw(number, logits.reshape(*last.shape, -1), filters)
    seen = logits[:, several] if streams.checking else None
    return (drawn.token.astype(last.dtype), caches), (drawn, seen)

  begun = last, tuple(caches[:split])
  numbers = jnp.moveaxis(uniform[..., : streams.ahead], -1, 0)
  (_, drafting), (drawn, logits) = lax.scan(draft, begun, numbers)
  drawn = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), drawn)
  if not streams.checking:
    return drawn, jnp.full(last.shape, streams.ahead), drafting
  before = jnp.concatenate([last[..., None], drawn.token[..., :-1]], axis=-1)
  said, checking = _heard(
    decoder, streams, streams.checking, params[split:], tuple(caches[split:]), before
  )
  logits = jnp.moveaxis(logits, 0, -2)
  drawn, right = _checked(streams, filters, drawn, logits, said, uniform[..., streams.ahead :])
  return drawn, right, drafting + checking


def _heard(decoder, streams, readers, params, caches, tokens):
  """What the streams of readers say after tokens [b, R, k], added up; and the caches after it.

  That is mixture -> logits [b, count, k, V], for those that the readers have a part in.
  """
  totals, kept = {}, []
  for reader, own, cache in zip(readers, params, caches, strict=True):
    rows = _of_reader(reader, _apart(streams, tokens))
    hidden, cache = decoder.decode(own, rows.reshape(-1, rows.shape[-1]), cache)
    said = decoder.logits(own, hidden).reshape(*rows.shape, -1)
    for number, stream in enumerate(reader.streams):
      totals[stream.mixture] = totals.get(stream.mixture, 0.0) + stream.weight * said[:, number]
    kept.append(cache)
  return totals, tuple(kept)


def _checked(streams, filters, drawn, logits, said, uniform):
  """Of the drafts of mixtures with other members, what is theirs; and how many tokens are.

  `logits` [b, mixtures of several, count, k, V] is what they were drawn of, and `said` what the
  other members say.
  """
  mixtures, several = streams.mixtures, _of_several(streams.mixtures)
  drafters = _drafters(mixtures)
  shares = {i: mixtures[i][drafters[i]] / _draft_weight(mixtures[i]) for i in several}
  totals = [shares[i] * logits[:, number] + said[i] for number, i in enumerate(several)]
  log_target = filtered(jnp.stack(totals, axis=1), filters)
  guesses, chances = (_apart(streams, x)[:, several] for x in (drawn.token, uniform))
  theirs, right = verified(guesses, filtered(logits, filters), log_target, chances)

  def put(x, own):
    return _apart(streams, x).at[:, several].set(own).reshape(x.shape)

  whole = jnp.full(drawn.token.shape[:-1], streams.ahead)
  return jax.tree.map(put, drawn, theirs), put(whole, right)


def _apart(streams: Streams, x: Array) -> Array:
  """[b, R, ...] by mixture and sample, [b, mixtures, count, ...]."""
  return x.reshape(len(x), len(streams.mixtures), streams.count, *x.shape[2:])


def _of_reader(reader: Reader, x: Array) -> Array:
  """What the streams of a reader have of x, [b, mixtures, count, ...]."""
  return x[:, np.array([stream.mixture for stream in reader.streams])]


def _of_several(mixtures: Sequence[Mixture]) -> np.ndarray:
  """The mixtures of more than one member."""
  return np.array([i for i, mixture in enumerate(mixtures) if len(mixture) > 1], int)


def _drafters(mixtures: Sequence[Mixture]) -> list[str]:
  """Who drafts each mixture: the heaviest of the members that are read for every token anyway."""
  alone = {slot for mixture in mixtures if len(mixture) == 1 for slot in mixture}
  return [max(mixture, key=lambda slot: (slot in alone, mixture[slot])) for mixture in mixtures]


def _draft_weight(mixture: Mixture) -> float:
  """What the drafter's logits weigh: as much as those of all members, or 1 where that is zero."""
  return sum(mixture.values()) or 1.0


def _by_slot(streams: Sequence[Stream]) -> list[Reader]:
  """A reader a slot."""
  slots = sorted({stream.slot for stream in streams})
  return [Reader([slot], [one for one in streams if one.slot == slot]) for slot in slots]
