"""ONPO: optimistic mirror descent, with two fits in each round."""

from nlhf_jax.configs import base

get_config = base.trains(onpo=base.policy('onpo', eta=1.5, every=15))
