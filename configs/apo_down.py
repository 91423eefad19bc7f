"""APO-down: both responses down, the loser more."""

from nlhf_jax.configs import base

get_config = base.trains(apo_down=base.offline('apo_down', beta=0.1))
