"""Nash-EMA-PG: the policy against the average of its past weights."""

from configs import base


def get_config(source='synthetic'):
  config = base.get_config(source)
  config.policies.nash_ema = base.policy('nash_ema_pg', rate=0.02, tau=0.06)
  return config
