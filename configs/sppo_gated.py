"""SPPO with the semantic gate of S-SPPO: responses that are alike have win rates near 1/2."""

from nlhf_jax.configs import base

get_config = base.trains(
  sppo_gated=base.policy('sppo_gated', batch=32, eta=5.0, samples=5, every=100, log_z=0.5)
)
