"""Nash-MD with several responses and several opponents a prompt."""

from nlhf_jax.configs import base

get_config = base.trains(
  nash_md_group=base.policy(
    'nash_md_group', batch=16, beta=0.125, tau=0.06, responses=2, opponents=4
  )
)
