"""INPO: mirror descent in rounds, anchored at SFT and at pi_t."""

from nlhf_jax.configs import base

get_config = base.trains(inpo=base.policy('inpo', tau=0.06, eta=0.18, every=25))
