"""IPO-MD: pairs from the mixture with SFT; rests where Nash-MD does."""

from nlhf_jax.configs import base

get_config = base.trains(ipo_md=base.policy('ipo_md', beta=0.125, tau=0.06))
