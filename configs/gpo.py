"""GPO: SPPO on log-odds in place of win rates."""

from nlhf_jax.configs import base

get_config = base.trains(gpo=base.policy('gpo', batch=32, eta=1.0, samples=5, every=100))
