"""RSPO: SPPO with a forward and a reverse KL to SFT."""

from nlhf_jax.configs import base

get_config = base.trains(
  rspo=base.policy('rspo', batch=32, eta=5.0, samples=5, every=100, forward=0.1, reverse=0.1)
)
