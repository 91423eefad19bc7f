"""Online IPO: fresh pairs; rests where self-play does."""

from nlhf_jax.configs import base

get_config = base.trains(online_ipo=base.policy('online_ipo', tau=0.06))
