"""Self-play: the policy against itself, with a KL cost to SFT."""

from nlhf_jax.configs import base

get_config = base.trains(self_play=base.policy('self_play', tau=0.06))
