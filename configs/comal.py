"""COMAL: INPO around a magnet that is reset to the policy."""

from nlhf_jax.configs import base

get_config = base.trains(comal=base.policy('comal', tau=0.06, eta=0.18, every=25, reset=150))
