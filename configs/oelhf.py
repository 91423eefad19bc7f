"""OELHF: each response against the best of four others; its fixed point is that of self-play."""

from nlhf_jax.configs import base

get_config = base.trains(oelhf=base.policy('oelhf', batch=32, tau=0.06, candidates=4))
