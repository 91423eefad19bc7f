"""RLHF: a reward model and a policy gradient on it; tau is in log-odds a nat.

In single runs 0.06 ended in noise, far from SFT; 0.25 won 0.62 against SFT; 0.5 won 0.72 in one,
and in another, which differed in rounding alone, found the reward model's errors and ended in
noise; 1.0 won 0.65.
"""

from nlhf_jax.configs import base

get_config = base.trains(rlhf=base.policy('rlhf_pg', tau=1.0, judge='reward'))
