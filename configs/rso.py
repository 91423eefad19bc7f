"""RSO: rejection sampling from the reference, ranked by the judge."""

from nlhf_jax.configs import base

get_config = base.trains(
  rso=base.policy('rso', batch=16, beta=0.5, gamma=0.1, candidates=15, keep=3)
)
