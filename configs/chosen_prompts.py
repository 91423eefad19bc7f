"""Chosen prompts: a prompter that chooses those on which the policy can still be exploited.

nlhf run --config=chosen_prompts
nlhf run --config=chosen_prompts:file --config.data.path=FILE

Beside it the same policy whose prompter cannot leave the data, since that costs it too much.
"""

from nlhf_jax.configs import base

TAU, POOL = 0.06, 64


def prompted(tau):
  """A policy against an opponent, on prompts of a prompter that pays `tau` a nat."""
  row = base.with_opponent(base.policy('self_play', tau=TAU), reads='prompt', tau=TAU)
  return base.with_prompter(row, pool=POOL, tau=tau)


get_config = base.trains(prompted=prompted(0.05), from_data=prompted(1e6))
