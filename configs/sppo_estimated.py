"""SPPO with its normaliser estimated from the samples."""

from nlhf_jax.configs import base

get_config = base.trains(
  sppo_estimated=base.policy('sppo_estimated', batch=32, eta=5.0, samples=5, every=100)
)
