"""Self-play on a map of the probabilities, here their log-odds."""

from nlhf_jax.configs import base

get_config = base.trains(psi_self_play=base.policy('psi_self_play', tau=0.3, psi='log_odds'))
