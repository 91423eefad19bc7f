"""REBEL: regression on differences of win rates."""

from nlhf_jax.configs import base

get_config = base.trains(rebel=base.policy('rebel', eta=5.0, every=100))
