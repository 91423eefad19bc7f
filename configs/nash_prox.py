"""Nash Prox: self-play with a second KL cost, to the average of past weights."""

from nlhf_jax.configs import base

get_config = base.trains(nash_prox=base.policy('nash_prox', tau=0.06, eta=10.0, rate=0.05))
