"""Self-play on pairs, for the price KL + chi^2 / 2."""

from nlhf_jax.configs import base

get_config = base.trains(chi_self_play=base.policy('chi_self_play', tau=0.06))
