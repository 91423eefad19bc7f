"""RPO with a squared distance between the leads and their targets."""

from nlhf_jax.configs import base

get_config = base.trains(rpo_squared=base.offline('rpo_squared', beta=0.1, eta=2.0))
