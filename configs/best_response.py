"""Best response to the SFT policy: what overfitting to a fixed opponent looks like."""

from configs import base


def get_config(source='synthetic'):
  config = base.get_config(source)
  config.policies.best_response = base.policy('best_response', tau=0.06)
  return config
