"""Nash-MD-PG and self-play, from supervised fine-tuning to the tournament between them.

nlhf run --config=nash_md
nlhf run --config=nash_md:file --config.data.path=FILE
"""

from nlhf_jax.configs import base

get_config = base.trains(
  self_play=base.policy('self_play', tau=0.06),
  nash_md=base.policy('nash_md_pg', beta=0.125, tau=0.06),
)
