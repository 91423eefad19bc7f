"""SPPO on samples at the temperature of its released code, which makes that policy the lottery."""

from nlhf_jax.configs import base

get_config = base.trains(
  sppo_tempered=base.policy(
    'sppo_tempered', batch=16, eta=1.0, samples=5, every=50, log_z=0.5, temperature=0.7
  )
)
