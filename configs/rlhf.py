"""RLHF: a reward model and a policy gradient on it; tau is in log-odds a nat.

At 0.5 some runs win more (0.72 against SFT), and others find the reward model's errors and end in
noise, 11 nats away; at less most of them do.
"""

from configs import base

get_config = base.trains(rlhf=base.policy('rlhf_pg', tau=1.0, judge='reward'))
