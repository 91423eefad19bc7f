"""Chosen prompts: a prompter that chooses those on which the policy can still be exploited.

nlhf run --config=chosen_prompts
nlhf run --config=chosen_prompts:file --config.data.path=FILE

For comparison, the same policy with a prompter that does not learn: all prompts are equally
probable.
"""

from nlhf_jax.configs import base

TAU, POOL = 0.06, 64


def prompted(learning_rate):
  """A policy against an opponent, on prompts of a prompter that learns at this rate."""
  row = base.with_opponent(base.policy('self_play', tau=TAU), reads='prompt', tau=TAU)
  return base.with_prompter(row, pool=POOL, tau=0.05, learning_rate=learning_rate)


get_config = base.trains(prompted=prompted(0.05), from_data=prompted(1e-9))
