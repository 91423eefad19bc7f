"""Online IPO: sampled pairs; its fixed point is that of self-play."""

from nlhf_jax.configs import base

get_config = base.trains(online_ipo=base.policy('online_ipo', tau=0.06))
