"""ONPO: optimistic, two solves a round."""

from configs import base

get_config = base.trains(onpo=base.policy('onpo', eta=4.0, every=15))
