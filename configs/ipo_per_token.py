"""IPO on the comparisons, with log-ratios averaged over tokens."""

from nlhf_jax.configs import base

get_config = base.trains(ipo_per_token=base.offline('ipo_per_token', tau=0.6))
