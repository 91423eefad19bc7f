"""Self-play of a group of samples, all against all."""

from nlhf_jax.configs import base

get_config = base.trains(
  self_play_group=base.policy('self_play_group', batch=16, tau=0.06, samples=4)
)
