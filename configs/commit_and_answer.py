"""Commit and answer: a leader, and a follower that reads its response and answers it.

nlhf run --config=commit_and_answer
nlhf run --config=commit_and_answer:file --config.model.hf=MODEL --config.data.path=FILE

A pretrained model needs other learning rates: see docs/guides/commit_and_answer.md.

Beside it self-play, which does not expect an answer. Both are then refined: the leader by its
follower, self-play by itself.
"""

from nlhf_jax.configs import base

TAU = 0.06
# The model of the embedded task follows no instruction, but summarises a post that it reads again.
INSTRUCTIONS = {'synthetic': '{prompt}', 'file': 'Improve the previous answer.'}


def get_config(source='synthetic'):
  config = base.get_config(source)
  leader = base.with_opponent(
    base.policy('self_play', tau=TAU),
    reads='response',
    tau=TAU,
    instruction=INSTRUCTIONS[source],
  )
  config.policies.update(self_play=base.policy('self_play', tau=TAU), leader=leader)
  config.refinement.update(rounds=3, instruction=INSTRUCTIONS[source])
  return config
