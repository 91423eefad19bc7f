"""Nash-MD-PG and self-play, from SFT to the tournament between them.

python -m nlhf_jax.main --config=configs/nash_md.py
python -m nlhf_jax.main --config=configs/nash_md.py:jsonl --config.data.path=FILE
"""

from configs import base


def get_config(source='synthetic'):
  config = base.get_config(source)
  config.policies.self_play = base.policy('self_play', tau=0.06)
  config.policies.nash_md = base.policy('nash_md_pg', beta=0.125, tau=0.06)
  return config
