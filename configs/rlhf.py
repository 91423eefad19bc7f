"""RLHF: a policy gradient on a reward model; tau is in log-odds per nat.

In single runs, tau = 0.06 ended in meaningless text far from SFT; 0.25 won 0.62 of comparisons with
SFT; 0.5 won 0.72 in one run, and in another, which differed in rounding only, exploited errors of
the reward model and ended in meaningless text; 1.0 won 0.65.
"""

from nlhf_jax.configs import base

get_config = base.trains(rlhf=base.policy('rlhf_pg', tau=1.0, judge='reward'))
