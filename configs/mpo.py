"""MPO: a proximal step from pi_t, around a magnet that is reset to the policy."""

from nlhf_jax.configs import base

get_config = base.trains(mpo=base.policy('mpo', tau=0.06, eta=5.0, every=10, reset=150))
