"""SPPO on the preference between the best and the worst sample alone."""

from nlhf_jax.configs import base

get_config = base.trains(
  sppo_pair=base.policy('sppo_pair', batch=32, eta=5.0, samples=5, every=100)
)
