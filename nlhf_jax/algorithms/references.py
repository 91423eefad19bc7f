"""How a slot other than `policy` moves, once an update is done.

A rule reads every slot: the policy is the one just proposed, the others are as they were.
"""

from collections.abc import Callable, Mapping

import optax
from jaxtyping import Array

from nlhf_jax.algorithms.naming import named
from nlhf_jax.structs import Params

# (the slot, slot -> parameters, updates done) -> the slot's new parameters
ReferenceRule = Callable[[str, Mapping[str, Params], Array], Params]


def frozen(slot: str, params: Mapping[str, Params], updates: Array) -> Params:
  """Stays what the policy was at the start."""
  del updates
  return params[slot]


def newest(slot: str, params: Mapping[str, Params], updates: Array) -> Params:
  """Is the policy proposed last, whether or not the policy takes it."""
  del slot, updates
  return params['policy']


@named
def ema(rate: float) -> ReferenceRule:
  """theta_bar <- (1 - rate) theta_bar + rate theta: `rate` is the weight on the newest policy."""
  return lambda slot, params, updates: optax.incremental_update(
    params['policy'], params[slot], rate
  )


@named
def snapshot(every: int, of: str = 'policy', first: int = 0) -> ReferenceRule:
  """Becomes the slot `of` after updates first, first + every, first + 2 every, ..."""
  return lambda slot, params, updates: optax.periodic_update(
    params[of], params[slot], updates - first, every
  )


def history(count: int, every: int) -> dict[str, ReferenceRule]:
  """Slots `history_1` (newest) to `history_{count}`: the policy at the ends of the last rounds.

  A round is `every` updates. All of them start as the policy does.
  """
  slots = [f'history_{age}' for age in range(1, count + 1)]
  return {
    slot: snapshot(every, of=newer) for slot, newer in zip(slots, ['policy', *slots], strict=False)
  }
