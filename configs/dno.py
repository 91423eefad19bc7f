"""DNO: soft labels from differences of win rates."""

from nlhf_jax.configs import base

get_config = base.trains(dno=base.policy('dno', eta=0.2, every=100))
