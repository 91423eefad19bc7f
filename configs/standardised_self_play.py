"""Self-play of a group of samples with standardised advantages, as in GRPO."""

from nlhf_jax.configs import base

get_config = base.trains(
  standardised_self_play=base.policy('standardised_self_play', batch=16, tau=0.06, samples=4)
)
