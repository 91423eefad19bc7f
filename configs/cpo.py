"""CPO: DPO without a reference, and the likelihood of winners."""

from nlhf_jax.configs import base

get_config = base.trains(cpo=base.offline('cpo', beta=0.1, weight=1.0))
