"""Nash-EMA-PG: against the average of past weights, which competes too."""

from configs import base

get_config = base.trains(
  nash_ema=base.policy('nash_ema_pg', rate=0.02, tau=0.06, entries='policy,average')
)
