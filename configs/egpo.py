"""EGPO: extragradient on online IPO."""

from configs import base

get_config = base.trains(egpo=base.policy('egpo', steps=600, tau=0.06, temperature=1.5))
