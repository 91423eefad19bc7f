"""XPO: online DPO against samples of SFT, with an exploration bonus."""

from nlhf_jax.configs import base

get_config = base.trains(xpo=base.policy('xpo', alpha=1e-3, beta=0.1))
