"""Sampling conversations: the policy writes turns, and a user replies between them.

A conversation is one row of tokens without padding between its turns, so that every loss and every
score of a response is that of a conversation. The caches of a turn are those of the turn before:
after the policy's turn they read its last token and the user's reply, in one pass, and nothing is
read twice. Each conversation has its own draws of the user, on the left and on the right.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax import distributed, ranges
from nlhf_jax.errors import UserError
from nlhf_jax.models import sharding
from nlhf_jax.models.decoder import Decoder
from nlhf_jax.ranges import AtLeastOne, Count
from nlhf_jax.sampling.decode import decode, grow_caches
from nlhf_jax.sampling.layouts import end_padding, sampling_layout, to_training
from nlhf_jax.sampling.mixture_decoding import group_params, make_plan, member_rows, split_rows
from nlhf_jax.sampling.prefill import prefill
from nlhf_jax.sampling.rollout import Rollout, make_rollout, split_mixtures
from nlhf_jax.sampling.sampler import (
  Sampler,
  SamplingState,
  append_tokens,
  cache_limits,
  make_sampler,
)
from nlhf_jax.sampling.token import UNFILTERED, Filters, sample_token, take_entry
from nlhf_jax.structs import Mixture, Params, Prompts, Responses

USER = 1 << 31  # folded into the key for users; sampling steps fold smaller numbers


class Replies(NamedTuple):
  """What users reply to B x K conversations: `lengths` tokens of each row, maybe none.

  `over` marks conversations that end, in which the policy has no further turn.
  """

  tokens: Int[np.ndarray, 'B K W']
  lengths: Int[np.ndarray, 'B K']
  over: Bool[np.ndarray, 'B K']


# (prompts, conversations so far, key) -> replies. Arrays are NumPy's, and the latest turn of a
# conversation is that of the highest number. In each of several processes the user gets the whole
# batch, and must reply alike.
User = Callable[[Prompts, Responses, Array], Replies]


class Dialogue(NamedTuple):
  """A conversation of at most `turns` turns of the policy; a user replies after all but the last.

  `user` replies with at most `reply_length` tokens, the template's tokens around them included.
  """

  user: User
  turns: AtLeastOne
  reply_length: Count

  def row_length(self, length: int) -> int:
    """The most tokens in a conversation whose turns have at most `length` tokens."""
    return self.turns * length + (self.turns - 1) * self.reply_length


def make_dialogue_rollout(
  decoder: Decoder,
  mixtures: Sequence[Mixture],
  *,
  dialogue: Dialogue,
  length: int,
  stop: int,
  count: int = 1,
  filters: Filters = UNFILTERED,
) -> Rollout:
  """A function that samples `count` conversations per prompt from each mixture.

  It runs on the host, since users do. With one turn it is `make_rollout`.

  Args:
    decoder: the model that every slot's parameters belong to.
    mixtures: slot -> weight, each, of the next token in every turn of the policy.
    dialogue: the user, and the number of turns.
    length: maximum number of tokens in a turn of the policy, including the stop token.
    stop: the token that ends a turn.
    count: conversations per prompt, from each mixture.
    filters: temperature, top-k and top-p.

  Returns:
    As `make_rollout`; the responses [B, count, dialogue.row_length(length)] have their `turn`.

  Raises:
    UserError: from the function, if a reply is longer than `dialogue.reply_length`.
  """
  ranges.check(Dialogue, dialogue._asdict(), 'dialogue')
  settings = dict(stop=stop, count=count, filters=filters)
  if dialogue.turns == 1:
    return make_rollout(decoder, mixtures, length=length, **settings)
  sampler = make_sampler(decoder, mixtures, dialogue.row_length(length), **settings)
  return partial(dialogue_rollout, sampler, dialogue, length)


def dialogue_rollout(
  sampler: Sampler,
  dialogue: Dialogue,
  length: int,
  params: Mapping[str, Params],
  prompts: Prompts,
  key: Array,
) -> tuple[Responses, ...]:
  """Samples conversations, one `Responses` [B, count, T] per mixture.

  Args:
    sampler: its length is that of whole conversations.
    dialogue: the user, and the number of turns.
    length: maximum number of tokens in a turn of the policy.
    params: slot -> parameters.
    prompts: [B, P].
    key: of the whole rollout.
  """
  given = prompts
  with sampling_layout(sampler, params, given, key) as (params, prompts, key):
    state = end_padding(prefill(sampler, params, prompts, key), len(given.tokens))
    responses = _converse(sampler, dialogue, length, params, given, state, key)
  return to_training(responses, len(given.tokens))


def _converse(sampler, dialogue, length, params, prompts, state, key):
  """Conversations on the prompts, which may be fewer than those of the state, from its caches."""
  count, rows = len(prompts.tokens), len(state.prompts)
  ends = jnp.full_like(state.lengths, length)
  state = state._replace(ends=ends, done=state.done | (state.lengths == ends))
  params = sampler.decoder.for_decoding(params)
  limits, turn = cache_limits(sampler), jnp.zeros(state.responses.mask.shape, jnp.int32)
  read, over = distributed.fetch(prompts), np.zeros((count, sampler.rows), bool)
  for number in range(1, dialogue.turns + 1):
    state, limits = decode_turn(sampler, params, state, key, limits)
    turn = number_turn(state, turn, number, length)
    if number == dialogue.turns:
      break
    so_far = state.responses._replace(log_probs=None, entropy=None, turn=turn)
    responses = jax.tree.map(lambda leaf: leaf[:count], distributed.fetch(so_far))
    user_key = jax.random.fold_in(jax.random.fold_in(key, USER), number)
    replies = checked(dialogue, dialogue.user(read, responses, user_key))
    over |= replies.over
    if over.all():
      break
    lengths = np.where(over, 0, replies.lengths)
    # The first token of the next turn needs room too.
    needed = int(np.max(responses.mask.sum(axis=-1) + lengths)) + 1
    while limits[0] < needed:
      limits = limits[1:]
      state = grow_caches(state, limits[0] - 1)
    width = padded_width(int(lengths.max()), dialogue.reply_length)
    tokens = np.zeros((rows, sampler.rows, width), np.int32)
    tokens[:count, :, : replies.tokens.shape[-1]] = replies.tokens[..., :width]
    unused = ((0, rows - count), (0, 0))  # prompts that are done
    lengths = np.pad(lengths.astype(np.int32), unused)
    placed = sharding.put_rows((tokens, lengths, np.pad(over, unused, constant_values=True)))
    state = begin_turn(sampler, params, state, *placed, key, length=length)
  return split_mixtures(sampler, state.responses._replace(turn=turn))


def checked(dialogue: Dialogue, replies: Replies) -> Replies:
  """The replies.

  Raises:
    UserError: if one is longer than `dialogue.reply_length`.
  """
  longest = int(np.max(np.where(replies.over, 0, replies.lengths)))
  if longest > dialogue.reply_length:
    raise UserError(
      f"a user's reply has {longest} tokens, those of the template included; raise "
      f'reply_length={dialogue.reply_length}, or let the user be shorter.'
    )
  return replies


def padded_width(longest: int, most: int) -> int:
  """The next power of two, so that few programs are compiled, but at most `most`."""
  return min(1 << (longest - 1).bit_length(), most) if longest else 0


def decode_turn(
  sampler: Sampler,
  params: Mapping[str, Params],
  state: SamplingState,
  key: Array,
  limits: list[int],
) -> tuple[SamplingState, list[int]]:
  """Decodes until every conversation's turn has ended, and grows caches where they are full.

  The batch is not compacted, since the next turn needs every cache.
  """
  while True:
    state, _, full = decode(
      sampler, params, state, key, batch=len(state.prompts), limit=limits[0], compact_to=0
    )
    if not bool(full):
      return state, limits
    limits = limits[1:]
    state = grow_caches(state, limits[0] - 1)


@partial(jax.jit, static_argnames=('number', 'length'))
def number_turn(
  state: SamplingState, turn: Int[Array, 'b R T'], number: int, length: int
) -> Int[Array, 'b R T']:
  """The turn of every token, with `number` at those since the policy's turn began."""
  began = jnp.arange(turn.shape[-1]) >= (state.ends - length)[..., None]
  return jnp.where(state.responses.mask & began & (turn == 0), number, turn)


@partial(jax.jit, static_argnames=('sampler', 'length'), donate_argnames='state')
def begin_turn(
  sampler: Sampler,
  params: Mapping[str, Params],
  state: SamplingState,
  replies: Int[Array, 'b R W'],
  lengths: Int[Array, 'b R'],
  over: Bool[Array, 'b R'],
  key: Array,
  *,
  length: int,
) -> SamplingState:
  """Reads the users' replies, and samples the first token of the policy's next turn.

  Args:
    sampler: the static settings.
    params: slot -> parameters.
    state: after a turn; donated.
    replies: tokens of the users, of which the first `lengths` are read.
    lengths: of the replies.
    over: conversations that have ended, and do not change.
    key: of the whole rollout.
    length: most tokens in the policy's turn.
  """
  logits, caches = read_replies(sampler, params, state, replies, lengths)
  columns = state.lengths[..., None] + jnp.arange(replies.shape[-1])
  written = (jnp.arange(replies.shape[-1]) < lengths[..., None]) & ~over[..., None]
  columns = jnp.where(written, columns, sampler.length)
  put = jax.vmap(jax.vmap(lambda old, at, new: old.at[at].set(new, mode='drop')))
  responses = state.responses._replace(
    tokens=put(state.responses.tokens, columns, replies.astype(state.responses.tokens.dtype)),
    mask=put(state.responses.mask, columns, written),
  )
  begins = state.lengths + jnp.where(over, 0, lengths)
  ends = jnp.where(over, state.ends, begins + length)
  state = state._replace(done=over, lengths=begins, caches=caches, responses=responses, ends=ends)
  shape = (*begins.shape, make_plan(sampler, 'base' in params).randoms)
  uniform = jax.random.uniform(jax.random.fold_in(key, state.step), shape)[..., 0]
  sampled = sample_token(uniform, logits, sampler.filters)
  sampled = jax.tree.map(lambda x: x[..., None], sampled)
  return append_tokens(sampler, state, sampled, jnp.ones_like(begins))


def read_replies(
  sampler: Sampler,
  params: Mapping[str, Params],
  state: SamplingState,
  replies: Int[Array, 'b R W'],
  lengths: Int[Array, 'b R'],
) -> tuple[Float[Array, 'b R V'], tuple]:
  """Next-token logits of every mixture after the replies, and the caches with them.

  The padding of a reply is cached behind it, where later tokens replace it.
  """
  plan, totals, caches = make_plan(sampler, 'base' in params), {}, []
  # The last token is in no cache yet; in rows that were done early, `state.last` is the stop token.
  last = take_entry(state.responses.tokens, state.lengths - 1)
  tokens = jnp.concatenate([last[..., None], replies.astype(last.dtype)], axis=-1)
  tokens, at, cached = (split_rows(sampler, x) for x in (tokens, lengths, state.lengths - 1))
  groups = zip(plan.groups, group_params(sampler, plan, params), state.caches, strict=True)
  for group, own, cache in groups:
    rows = member_rows(group, tokens)
    cache = cache._replace(length=member_rows(group, cached).reshape(-1))
    hidden, cache = sampler.decoder.decode(own, rows.reshape(-1, rows.shape[-1]), cache)
    final = member_rows(group, at).reshape(-1, 1, 1)
    logits = sampler.decoder.logits(own, jnp.take_along_axis(hidden, final, axis=1))
    logits = logits.reshape(*rows.shape[:3], -1)
    for number, (slot, mixture, _) in enumerate(group.members):
      # The weights of the plan are those of drafts.
      weight = dict(sampler.mixtures[mixture])[slot]
      totals[mixture] = totals.get(mixture, 0.0) + weight * logits[:, number]
    caches.append(cache)
  mixed = jnp.concatenate([totals[number] for number in range(len(sampler.mixtures))], axis=1)
  return mixed, tuple(caches)
