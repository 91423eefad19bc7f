"""How a slot other than `policy` moves, once an update is done."""

from collections.abc import Callable

import optax

from nlhf_jax.structs import Params

# (the slot's parameters, the policy's new parameters) -> the slot's new parameters
ReferenceRule = Callable[[Params, Params], Params]


def frozen(old: Params, policy: Params) -> Params:
  """Stays what the policy was at the start."""
  del policy
  return old


def ema(rate: float) -> ReferenceRule:
  """theta_bar <- (1 - rate) theta_bar + rate theta: `rate` is the weight on the newest policy."""
  return lambda old, policy: optax.incremental_update(policy, old, rate)
