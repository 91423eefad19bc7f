"""EGPO: extragradient on online IPO."""

from nlhf_jax.configs import base

get_config = base.trains(egpo=base.policy('egpo', steps=600, tau=0.06, temperature=1.5))
