"""Self-play with clipped ratios: four updates on the samples of one policy."""

from nlhf_jax.configs import base

get_config = base.trains(
  clipped_self_play=base.policy('clipped_self_play', tau=0.06, clip=0.2, every=4)
)
