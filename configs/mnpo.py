"""TD-MNPO: anchored at SFT and at the policies of the last rounds."""

from nlhf_jax.configs import base

get_config = base.trains(mnpo=base.policy('mnpo', ratio=0.33, eta=0.18, every=25, rounds=2))
