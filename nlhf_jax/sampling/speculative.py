"""Speculative decoding of mixtures: one member drafts tokens, the others check them at once.

On accelerators, decoding a token takes as long as reading the weights. So one member drafts a few
tokens, the other members process all of them in one pass, and each token is accepted with
probability min(1, mixture / draft); the first that is rejected is replaced by a sample from the
positive part of mixture - draft (arXiv 2211.17192). The tokens have the mixture's distribution
whatever the drafter. With two slots of the same size, it saves time if more than 7 of 10
drafted tokens are accepted.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from nlhf_jax.models.decoder import Cache
from nlhf_jax.sampling.mixture_decoding import (
  DecodePlan,
  choose_drafters,
  draft_weight,
  mixture_logits,
  split_rows,
)
from nlhf_jax.sampling.sampler import Sampler
from nlhf_jax.sampling.token import SampledToken, filter_logits, sample_token, take_entry
from nlhf_jax.structs import Params


class Draft(NamedTuple):
  """Tokens sampled one by one, [b, R, k], and the logits they were sampled from.

  `logits` [b, mixtures, count, k, V] are those of mixtures that other groups check.
  """

  sampled: SampledToken
  logits: Array | None


def draft(
  sampler: Sampler,
  plan: DecodePlan,
  params: Sequence[Params],
  caches: Sequence[Cache],
  last: Int[Array, 'b R'],
  uniform: Float[Array, 'b R k'],
) -> tuple[Draft, tuple[Cache, ...]]:
  """Samples the next tokens of each row, one by one, from the drafting groups.

  Args:
    sampler: the static settings.
    plan: its groups.
    params: of each drafting group.
    caches: of each drafting group.
    last: the token that each row continues.
    uniform: numbers in [0, 1), one per token.

  Returns:
    The draft, and the caches with all its tokens but the last.
  """
  checked = _checked_mixtures(sampler)

  def step(carry, number):
    last, caches = carry
    totals, caches = mixture_logits(sampler, plan.drafting, params, caches, last[..., None])
    logits = jnp.stack([totals[i][:, :, 0] for i in range(len(sampler.mixtures))], axis=1)
    sampled = sample_token(number, logits.reshape(*last.shape, -1), sampler.filters)
    kept = _select_mixtures(logits, checked) if plan.checking else None
    return (sampled.token.astype(last.dtype), caches), (sampled, kept)

  numbers = jnp.moveaxis(uniform, -1, 0)
  (_, caches), (sampled, logits) = lax.scan(step, (last, tuple(caches)), numbers)
  sampled = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), sampled)
  return Draft(sampled, None if logits is None else jnp.moveaxis(logits, 0, -2)), caches


def check(
  sampler: Sampler,
  plan: DecodePlan,
  params: Sequence[Params],
  caches: Sequence[Cache],
  last: Int[Array, 'b R'],
  drafted: Draft,
  uniform: Float[Array, 'b R n'],
) -> tuple[SampledToken, Int[Array, 'b R'], tuple[Cache, ...]]:
  """Accepts or replaces drafted tokens, so that they are distributed as the mixtures.

  Returns:
    Tokens [b, R, k]; how many of the first ones are valid; and the caches of checking groups.
  """
  sampled, checked, drafters = drafted.sampled, _checked_mixtures(sampler), choose_drafters(sampler)
  tokens = jnp.concatenate([last[..., None], sampled.token[..., :-1]], axis=-1)
  others, caches = mixture_logits(sampler, plan.checking, params, caches, tokens)
  own = {i: dict(sampler.mixtures[i])[drafters[i]] / draft_weight(sampler, i) for i in checked}
  totals = [own[i] * drafted.logits[:, number] + others[i] for number, i in enumerate(checked)]
  log_target = filter_logits(jnp.stack(totals, axis=1), sampler.filters)
  log_draft = filter_logits(drafted.logits, sampler.filters)
  rows, chances = (
    _select_mixtures(split_rows(sampler, x), checked) for x in (sampled.token, uniform)
  )
  accepted, count = accept(rows, log_draft, log_target, chances)

  def put(x, new):
    return split_rows(sampler, x).at[:, np.array(checked)].set(new).reshape(x.shape)

  sampled = jax.tree.map(put, sampled, accepted)
  return sampled, put(jnp.full(last.shape, plan.draft_length), count), caches


def _checked_mixtures(sampler: Sampler) -> list[int]:
  """Numbers of the mixtures of more than one member."""
  return [i for i, members in enumerate(sampler.mixtures) if len(members) > 1]


def _select_mixtures(x: Array, numbers: list[int]) -> Array:
  """[b, mixtures, ...] -> [b, those of these numbers, ...]."""
  return x[:, np.array(numbers, int)]


def accept(
  drafts: Int[Array, '... k'],
  log_draft: Float[Array, '... k V'],
  log_target: Float[Array, '... k V'],
  uniform: Float[Array, '... k+1'],
) -> tuple[SampledToken, Int[Array, '...']]:
  """Accepts drafted tokens until the first rejection, which it replaces.

  With probability min(1, target / draft) a token is accepted, so that the valid tokens are
  distributed as the target (arXiv 2211.17192, theorem 1). Unlike in that paper, no further
  token is sampled when all are accepted, because the drafter has not processed the last one.

  Args:
    drafts: the drafted tokens.
    log_draft: log-probabilities they were sampled from.
    log_target: those of the target after the same tokens; meaningless after a rejection.
    uniform: numbers in [0, 1): one to accept each token, and one to sample a replacement.

  Returns:
    Tokens with the target's log-probabilities and entropies; and how many of the first ones are
    valid, 1 to k.
  """
  length = drafts.shape[-1]
  ratio = jnp.exp(jnp.minimum(take_entry(log_target, drafts) - take_entry(log_draft, drafts), 0))
  accepted = jnp.sum(jnp.cumprod(uniform[..., :-1] < ratio, axis=-1), axis=-1)
  first = jnp.minimum(accepted, length - 1)
  target, draft = (
    jnp.exp(take_entry(x, first[..., None], axis=-2)) for x in (log_target, log_draft)
  )
  excess = jnp.maximum(target - draft, 0)
  # Rounding can leave no excess where draft and target are equal.
  excess = jnp.where(jnp.any(excess > 0, axis=-1, keepdims=True), excess, target)
  replacement = sample_token(uniform[..., -1], jnp.log(excess)).token
  tokens = jnp.where(jnp.arange(length) == accepted[..., None], replacement[..., None], drafts)
  finite = jnp.where(log_target > -jnp.inf, log_target, 0)
  entropy = -jnp.sum(jnp.exp(log_target) * finite, axis=-1)
  sampled = SampledToken(tokens, take_entry(log_target, tokens), entropy)
  return sampled, jnp.minimum(accepted + 1, length)
