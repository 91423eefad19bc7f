"""SPIN: demonstrations against samples of pi_t; needs no judge."""

from nlhf_jax.configs import base

get_config = base.trains(spin=base.policy('spin', beta=0.1, every=50))
