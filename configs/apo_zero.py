"""APO-zero: winners up and losers down, each on its own."""

from nlhf_jax.configs import base

get_config = base.trains(apo_zero=base.offline('apo_zero', beta=0.1))
