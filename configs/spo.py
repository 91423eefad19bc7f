"""SPO: the reward is the win rate against a queue of recent samples."""

from nlhf_jax.configs import base

get_config = base.trains(spo=base.policy('spo', tau=0.06, queue=4, every=10))
