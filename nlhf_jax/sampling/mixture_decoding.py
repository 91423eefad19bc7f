"""Which slots are decoded together, and the sum of their logits: next-token mixtures.

A mixture is sampled token by token from the normalised geometric mean of its members' next-token
distributions, so logits are summed with the members' weights (arXiv 2312.00886, appendix F.1). A
slot takes part in any number of mixtures, and decodes the rows of all of them in one pass.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int

from nlhf_jax import trees
from nlhf_jax.models.decoder import Cache, Decoder
from nlhf_jax.sampling.sampler import Sampler
from nlhf_jax.structs import Params


class MixtureMember(NamedTuple):
  """Membership of a slot in a mixture, given by its number, and the weight of the slot's logits."""

  slot: str
  mixture: int
  weight: float


class DecodeGroup(NamedTuple):
  """Slots that are decoded in one pass, with a row for each member, prompt and sample."""

  slots: Sequence[str]
  members: Sequence[MixtureMember]


class DecodePlan(NamedTuple):
  """Groups that draft the next `draft_length` tokens one by one, and groups that check them.

  Without checking groups, the drafting ones have all members, and decoding is not speculative.
  """

  drafting: Sequence[DecodeGroup]
  checking: Sequence[DecodeGroup]
  draft_length: int

  @property
  def groups(self) -> list[DecodeGroup]:
    """Drafting groups, then checking ones; caches are kept in this order."""
    return [*self.drafting, *self.checking]

  @property
  def randoms(self) -> int:
    """Random numbers that one step needs per row."""
    return 2 * self.draft_length + 1 if self.checking else 1


def make_plan(sampler: Sampler, shared_base: bool) -> DecodePlan:
  """The plan of a sampler.

  Slots that share a base all draft, in one group, so that its weights are read once per token.
  """
  parts = sorted(
    (slot, number, weight)
    for number, members in enumerate(sampler.mixtures)
    for slot, weight in members
  )
  members = [MixtureMember(*part) for part in parts]
  if shared_base:
    slots = sorted({member.slot for member in members})
    return DecodePlan([DecodeGroup(slots, members)], [], 1)
  if sampler.draft_length == 1:
    return DecodePlan(_group_by_slot(members), [], 1)
  drafters = choose_drafters(sampler)
  own = [member for member in members if member.slot == drafters[member.mixture]]
  drafting = [member._replace(weight=draft_weight(sampler, member.mixture)) for member in own]
  checking = _group_by_slot([member for member in members if member not in own])
  return DecodePlan(_group_by_slot(drafting), checking, sampler.draft_length if checking else 1)


def choose_drafters(sampler: Sampler) -> list[str]:
  """The drafting slot of each mixture: one that is also sampled alone, else that of most weight."""
  alone = {members[0][0] for members in sampler.mixtures if len(members) == 1}
  return [
    max(members, key=lambda pair: (pair[0] in alone, pair[1]))[0] for members in sampler.mixtures
  ]


def draft_weight(sampler: Sampler, mixture: int) -> float:
  """The weight of the drafter's logits: the sum of all members' weights, or 1 where that is 0."""
  return sum(weight for _, weight in sampler.mixtures[mixture]) or 1.0


def group_params(sampler: Sampler, plan: DecodePlan, params: Mapping[str, Params]) -> list[Params]:
  """The parameters that each group decodes its rows with."""
  return [
    trees.stack_slots(
      params, [member.slot for member in group.members for _ in range(sampler.count)]
    )
    for group in plan.groups
  ]


def mixture_logits(
  sampler: Sampler,
  groups: Sequence[DecodeGroup],
  params: Sequence[Params],
  caches: Sequence[Cache],
  tokens: Int[Array, 'b R k'],
) -> tuple[dict[int, Array], tuple[Cache, ...]]:
  """Weighted sums of the groups' logits after tokens, and the caches with those tokens.

  With speculative decoding these are partial sums: `speculative.check` adds those of the members
  that draft to those of the members that check. `prefill` mixes the logits of the first token.

  Returns:
    mixture -> [b, count, k, V], for mixtures with members in the groups; and the caches.
  """
  totals, longer = {}, []
  for group, own, cache in zip(groups, params, caches, strict=True):
    rows = member_rows(group, split_rows(sampler, tokens))
    logits, cache = _decode(sampler.decoder, own, rows, cache)
    for number, member in enumerate(group.members):
      totals[member.mixture] = totals.get(member.mixture, 0.0) + member.weight * logits[:, number]
    longer.append(cache)
  return totals, tuple(longer)


def _decode(decoder: Decoder, params: Params, tokens: Array, cache: Cache) -> tuple[Array, Cache]:
  """Logits after tokens [b, members, count, k], of the same shape with V last."""
  hidden, cache = decoder.decode(params, tokens.reshape(-1, tokens.shape[-1]), cache)
  return decoder.logits(params, hidden).reshape(*tokens.shape, -1), cache


def split_rows(sampler: Sampler, x: Array) -> Array:
  """[b, R, ...] -> [b, mixtures, count, ...]."""
  return x.reshape(len(x), len(sampler.mixtures), sampler.count, *x.shape[2:])


def member_rows(group: DecodeGroup, x: Array) -> Array:
  """[b, mixtures, count, ...] -> [b, members of the group, count, ...]."""
  return x[:, np.array([member.mixture for member in group.members])]


def _group_by_slot(members: Sequence[MixtureMember]) -> list[DecodeGroup]:
  """One group per slot."""
  slots = sorted({member.slot for member in members})
  return [DecodeGroup([slot], [one for one in members if one.slot == slot]) for slot in slots]
