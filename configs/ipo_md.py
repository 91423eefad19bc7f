"""IPO-MD: pairs from the mixture with SFT; its fixed point is that of Nash-MD."""

from nlhf_jax.configs import base

get_config = base.trains(ipo_md=base.policy('ipo_md', beta=0.125, tau=0.06))
