"""MPO: a proximal step against pi_t, around a magnet that moves."""

from nlhf_jax.configs import base

get_config = base.trains(mpo=base.policy('mpo', tau=0.06, eta=5.0, every=10, reset=150))
