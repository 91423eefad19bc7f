"""cDPO: DPO with labels softened by the expected share of flipped votes."""

from nlhf_jax.configs import base

get_config = base.trains(cdpo=base.offline('cdpo', beta=0.1, epsilon=0.1))
