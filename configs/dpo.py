"""DPO on the comparisons."""

from nlhf_jax.configs import base

get_config = base.trains(dpo=base.offline('dpo', beta=0.1))
