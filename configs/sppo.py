"""SPPO: the best and the worst of five samples, fitted to their win rates."""

from nlhf_jax.configs import base

get_config = base.trains(
  sppo=base.policy('sppo', batch=32, eta=5.0, samples=5, every=100, log_z=0.5)
)
