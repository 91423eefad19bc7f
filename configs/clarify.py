"""Policies that may ask before they answer: Nash-MD and its rivals on whole conversations.

nlhf run --config=clarify

The task of `nlhf_jax/tasks/clarify_corpus.py`: a post may lack a fact, and the user tells it to
whoever asks. Judges compare whole conversations; `learned` is trained on comparisons of them.
"""

from ml_collections import ConfigDict

from nlhf_jax.configs import base

TAU = 0.03


def get_config():
  config = base.get_config()
  config.data = ConfigDict(
    dict(
      source='clarify',
      posts=4_096,
      held_out=512,
      prompt_length=32,
      response_length=8,
      vocabulary=512,
    ),
    sort_keys=False,
  )
  config.dialogue.update(turns=2, user='nlhf_jax.tasks.clarify_corpus:tell', reply_length=4)
  config.sft.update(steps=300)
  config.preference_model.update(steps=2_000, evaluate_every=500)
  config.tournament.prompts = 512
  config.policies.update(
    self_play=base.policy('self_play', tau=TAU),
    nash_md=base.policy('nash_md_pg', beta=0.125, tau=TAU),
    online_ipo=base.policy('online_ipo', tau=TAU),
    best_response=base.policy('best_response', tau=TAU),
    self_play_oracle=base.policy('self_play', judge='oracle', tau=TAU),
  )
  config.exploiter = base.exploiter(
    'best_response',
    steps=200,
    batch=64,
    learning_rate=1e-3,
    evaluate_every=200,
    b1=0.0,
    b2=0.95,
    warmup=10,
    tau=0.0,
  )
  return config
