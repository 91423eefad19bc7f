"""Best response to the SFT policy, which shows overfitting to a fixed opponent."""

from nlhf_jax.configs import base

get_config = base.trains(best_response=base.policy('best_response', tau=0.06))
