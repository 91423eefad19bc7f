"""IPO on the comparisons, with log-ratios summed over tokens."""

from nlhf_jax.configs import base

get_config = base.trains(ipo=base.offline('ipo', tau=0.06))
