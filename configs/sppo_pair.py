"""SPPO with the preference between best and worst alone."""

from nlhf_jax.configs import base

get_config = base.trains(
  sppo_pair=base.policy('sppo_pair', batch=32, eta=5.0, samples=5, every=100)
)
