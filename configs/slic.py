"""SLiC: a hinge loss on log-probabilities, and the likelihood of the winners."""

from nlhf_jax.configs import base

get_config = base.trains(slic=base.offline('slic', delta=1.0, weight=0.1))
