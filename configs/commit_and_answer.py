"""Commit and answer: a leader, and a follower that reads its response and answers it.

nlhf run --config=commit_and_answer
nlhf run --config=commit_and_answer:file --config.data.path=FILE

Beside it self-play, which does not expect an answer. Both are then refined: the leader by its
follower, self-play by itself.
"""

from nlhf_jax.configs import base

TAU = 0.06


def get_config(source='synthetic'):
  leader = base.with_opponent(base.policy('self_play', tau=TAU), reads='response', tau=TAU)
  config = base.trains(self_play=base.policy('self_play', tau=TAU), leader=leader)(source)
  config.refinement.rounds = 3
  return config
