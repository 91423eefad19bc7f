"""Optimistic multiplicative weights: one fit a round, to a predicted payoff."""

from nlhf_jax.configs import base

get_config = base.trains(omwu=base.policy('omwu', eta=1.5, every=15))
