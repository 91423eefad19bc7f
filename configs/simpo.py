"""SimPO: no reference, and log-probabilities averaged over tokens."""

from nlhf_jax.configs import base

get_config = base.trains(simpo=base.offline('simpo', beta=2.0, gamma=0.5))
