"""ORPO: the likelihood of winners, and odds ratios in place of a reference."""

from nlhf_jax.configs import base

get_config = base.trains(orpo=base.offline('orpo', weight=0.1))
