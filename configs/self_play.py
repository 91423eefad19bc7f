"""Self-play alone: the policy against itself, regularised towards SFT."""

from configs import base


def get_config(source='synthetic'):
  config = base.get_config(source)
  config.policies.self_play = base.policy('self_play', tau=0.06)
  return config
