"""RPO with the backward KL: DPO on soft labels."""

from nlhf_jax.configs import base

get_config = base.trains(rpo_backward=base.offline('rpo_backward', beta=0.1, eta=2.0))
