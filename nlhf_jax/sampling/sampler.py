"""The settings of a rollout, and the state that it carries from token to token."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from nlhf_jax.models import sharding
from nlhf_jax.models.decoder import Cache, Decoder
from nlhf_jax.sampling.token import Filters, SampledToken, take_entry
from nlhf_jax.structs import Mixture, Responses

FIRST_ROOM = 64  # tokens that the first caches have room for
GROWTH = 4  # factor by which caches grow and batches shrink; a large one keeps programs few
MIN_BATCH = 8  # prompts in the smallest batch that compaction makes
DRAFT_LENGTH = 4  # tokens that speculative decoding drafts on accelerators


class Sampler(NamedTuple):
  """The static arguments of a rollout; hashable, so that equal samplers share programs.

  `mixtures` are pairs (slot, weight). `length` is the maximum number of tokens in a response,
  `stop` the token that ends one, `count` the number of responses per prompt from each mixture.
  """

  decoder: Decoder
  mixtures: tuple[tuple[tuple[str, float], ...], ...]
  length: int
  stop: int
  count: int
  filters: Filters
  draft_length: int
  first_room: int
  min_batch: int

  @property
  def rows(self) -> int:
    """Responses per prompt, R = mixtures x count."""
    return len(self.mixtures) * self.count


def make_sampler(
  decoder: Decoder,
  mixtures: Sequence[Mixture],
  length: int,
  stop: int,
  count: int,
  filters: Filters,
) -> Sampler:
  """A `Sampler` of these settings; members of weight zero are left out."""
  members = tuple(
    tuple((slot, weight) for slot, weight in mixture.items() if weight) for mixture in mixtures
  )
  sizes = default_draft_length(), FIRST_ROOM, MIN_BATCH
  return Sampler(decoder, members, length, stop, count, filters, *sizes)


def default_draft_length() -> int:
  """Tokens drafted at once: 1 on a CPU, where checking a token costs as much as decoding it."""
  return 1 if sharding.devices()[0].platform == 'cpu' else DRAFT_LENGTH


def cache_limits(sampler: Sampler) -> list[int]:
  """Response lengths at which caches are full: each next cache has `GROWTH` times the room.

  A response of n tokens needs room for n - 1, as its last token is never an input.
  """
  limits, room = [], sampler.first_room
  while room + 1 < sampler.length:
    limits.append(room + 1)
    room *= GROWTH
  return [*limits, sampler.length]


class SamplingState(NamedTuple):
  """The state of b prompts with R responses each; `lengths` counts the tokens sampled so far.

  `step` counts sampling steps, for random keys, of all prompts or of each one; `prompts` are the
  indices of the prompts in the whole batch; `last` is the latest token of each row, which no cache
  holds yet. `ends` is the length at which the present turn of a conversation must end; None: the
  whole response.
  """

  step: Int[Array, ''] | Int[Array, 'b']
  prompts: Int[Array, 'b']
  done: Bool[Array, 'b R']
  lengths: Int[Array, 'b R']
  last: Int[Array, 'b R']
  caches: tuple[Cache, ...]
  responses: Responses
  ends: Int[Array, 'b R'] | None = None


def append_tokens(
  sampler: Sampler, state: SamplingState, sampled: SampledToken, count: Int[Array, 'b R']
) -> SamplingState:
  """Appends the first `count` of the sampled tokens [b, R, k] to each row.

  A row ends at its first stop token or at the maximum length; rows that have ended do not
  change.
  """
  ends = sampler.length if state.ends is None else state.ends
  offsets = jnp.arange(sampled.token.shape[-1])
  columns = state.lengths[..., None] + offsets
  stops = sampled.token == sampler.stop
  mask = (jnp.cumsum(stops, axis=-1) - stops == 0) & (offsets < count[..., None])
  mask &= ~state.done[..., None] & (columns < jnp.expand_dims(ends, -1))
  tokens = jnp.where(mask, sampled.token, sampler.stop).astype(state.last.dtype)
  new = Responses(tokens, mask, *(jnp.where(mask, x, 0) for x in sampled[1:]))

  columns = jnp.where(mask, columns, sampler.length)
  put = jax.vmap(jax.vmap(lambda old, at, own: old.at[at].set(own, mode='drop')))
  responses = jax.tree.map(lambda old, own: put(old, columns, own), state.responses, new)
  appended = jnp.sum(mask, axis=-1, dtype=jnp.int32)
  lengths = state.lengths + appended
  stopped = jnp.any(mask & (tokens == sampler.stop), axis=-1)
  latest = take_entry(tokens, jnp.maximum(appended - 1, 0))
  return state._replace(
    step=state.step + 1,
    done=state.done | stopped | (lengths == ends),
    lengths=lengths,
    last=jnp.where(state.done, sampler.stop, latest),
    responses=responses,
  )


def map_prompts(tree, size: int, change: Callable[[Array], Array]):
  """Applies `change` to leaves as [size, rows per prompt, ...], and flattens them again."""

  def changed(leaf):
    rows = change(leaf.reshape(size, -1, *leaf.shape[1:]))
    return rows.reshape(-1, *leaf.shape[1:])

  return jax.tree.map(changed, tree)
