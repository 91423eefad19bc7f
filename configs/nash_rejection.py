"""Nash rejection sampling: the policy against its best response, by weights."""

from nlhf_jax.configs import base

get_config = base.trains(
  nash_rejection=base.policy('nash_rejection', batch=16, tau=0.06, responses=2, candidates=8)
)
