"""The best of k samples against one, by choices of a reward model."""

from nlhf_jax.configs import base

get_config = base.trains(
  best_of_k=base.policy('best_of_k', batch=16, tau=0.06, k=4, judge='reward')
)
