"""RSO with the hinge loss."""

from nlhf_jax.configs import base

get_config = base.trains(
  rso_hinge=base.policy('rso_hinge', batch=16, beta=0.5, gamma=0.1, candidates=15, keep=3)
)
