"""Online DPO: sampled pairs, labelled by the judge."""

from nlhf_jax.configs import base

get_config = base.trains(online_dpo=base.policy('online_dpo', beta=0.1))
