"""Robust DPO: unbiased for a known share of flipped votes."""

from nlhf_jax.configs import base

get_config = base.trains(robust_dpo=base.offline('robust_dpo', beta=0.1, epsilon=0.1))
