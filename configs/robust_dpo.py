"""DPO made unbiased for a share of flipped labels."""

from nlhf_jax.configs import base

get_config = base.trains(robust_dpo=base.offline('robust_dpo', beta=0.1, epsilon=0.1))
