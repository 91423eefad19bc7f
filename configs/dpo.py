"""DPO on the comparisons."""

from configs import base

get_config = base.trains(dpo=base.offline('dpo', beta=0.1))
