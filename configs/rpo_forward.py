"""RPO with the forward KL, which is EXO for labels that are smoothed."""

from nlhf_jax.configs import base

get_config = base.trains(rpo_forward=base.offline('rpo_forward', beta=0.1, eta=2.0))
