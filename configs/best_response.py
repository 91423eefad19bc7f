"""Best response to the SFT policy: what overfitting to a fixed opponent looks like."""

from nlhf_jax.configs import base

get_config = base.trains(best_response=base.policy('best_response', tau=0.06))
