"""Self-play: the policy against itself, regularised towards SFT."""

from nlhf_jax.configs import base

get_config = base.trains(self_play=base.policy('self_play', tau=0.06))
