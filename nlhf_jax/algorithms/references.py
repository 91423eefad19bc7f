"""Rules by which slots other than `policy` move after each update."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import optax
from jaxtyping import Array

from nlhf_jax.structs import Params


class ReferenceRule(NamedTuple):
  """How a slot moves: its kind, its update, and how it is printed.

  `update(slot, params, updates)` returns the slot's new parameters. `params` has the policy that
  the optimiser proposes, and all other slots as they were before the update; `updates` counts from
  1. The kinds are `frozen`, `newest`, `ema` and `snapshot`: a frozen slot is neither copied nor
  saved, and an `ema` moves too little at each update for weights in bfloat16.
  """

  kind: str
  update: Callable[[str, Mapping[str, Params], Array], Params]
  description: str


# Remains the policy that training started from.
frozen = ReferenceRule('frozen', lambda slot, params, updates: params[slot], 'frozen')

# Becomes the policy that was proposed last, whether or not the policy itself takes the step.
newest = ReferenceRule('newest', lambda slot, params, updates: params['policy'], 'newest')


def ema(rate: float) -> ReferenceRule:
  """Exponential moving average, theta_bar <- (1 - rate) theta_bar + rate theta."""

  def update(slot, params, updates):
    del updates
    return optax.incremental_update(params['policy'], params[slot], rate)

  return ReferenceRule('ema', update, f'ema({rate:.3g})')


def snapshot(every: int, of: str = 'policy', first: int = 0) -> ReferenceRule:
  """Becomes the slot `of` after updates first, first + every, first + 2 every, ..."""

  def update(slot, params, updates):
    return optax.periodic_update(params[of], params[slot], updates - first, every)

  shown = [str(every), *[f'of={of}'] * (of != 'policy'), *[f'first={first}'] * (first != 0)]
  return ReferenceRule('snapshot', update, f'snapshot({", ".join(shown)})')


def history(count: int, every: int) -> dict[str, ReferenceRule]:
  """Slots `history_1` (newest) to `history_{count}`: the policy at the ends of the last rounds.

  A round is `every` updates. Before the first round ends, all of them are the initial policy.
  """
  slots = [f'history_{age}' for age in range(1, count + 1)]
  return {
    slot: snapshot(every, of=newer) for slot, newer in zip(slots, ['policy', *slots], strict=False)
  }
