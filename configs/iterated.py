"""Iterated learning: votes, a judge that is refitted, and a policy that goes on, in rounds.

nlhf run --config=iterated
nlhf run --config=iterated:file --config.data.path=FILE --config.remote.url=URL
nlhf run --config=iterated:token_game

The loop of arXiv 2402.07314 with three enhancers, beside one-shot learning, which has as many votes
on responses of the SFT policy. On a file the votes are those of the judge `remote`.
"""

from ml_collections import ConfigDict

from nlhf_jax.configs import base, token_game

ENHANCERS = ('none', 'best_of_n', 'uncertain')
TAU = 0.06


def iterated(judge, *, rounds, enhancer):
  """A policy that learns from judges that are fitted to votes of `judge`."""
  policy = base.policy('online_ipo', tau=TAU, judge=judge, feedback='vote')
  votes = dict(
    total=8_192,  # of all rounds
    rounds=rounds,  # of equal length; 1 is one-shot learning
    enhancer=enhancer,  # none, best_of_n or uncertain: the response that a vote compares with
    candidates=4,  # responses of the policy that it chooses from
    ensemble=3,  # judges that are fitted, whose mean the policy learns from
    # With all votes; earlier rounds make fewer steps, in proportion to their votes.
    training=base.training(
      'preference_model', steps=1_000, batch=32, learning_rate=2e-3, evaluate_every=500
    ),
  )
  policy.votes = ConfigDict(votes, sort_keys=False)
  return policy


def get_config(source='synthetic'):
  if source == 'token_game':
    return token_game_config()
  config = base.get_config(source)
  judge = 'oracle' if source == 'synthetic' else 'remote'
  config.policies.update(
    {f'iterated_{name}': iterated(judge, rounds=4, enhancer=name) for name in ENHANCERS},
    one_shot=iterated(judge, rounds=1, enhancer='none'),
  )
  return config


def token_game_config():
  """The same on the token game, beside the method that knows all preferences."""
  config = token_game.get_config()
  for name in set(config.methods) - {'online_ipo'}:
    del config.methods[name]
  del config.votes.learners
  config.votes.learners = ConfigDict(sort_keys=False)
  for name in ENHANCERS:
    config.votes.learners[f'iterated_{name}'] = token_game.learner(
      'online_ipo', tau=config.get_ref('tau')
    )
    config.votes.learners[f'iterated_{name}'].enhancer = name
  config.votes.learners.one_shot = token_game.learner('online_ipo', tau=config.get_ref('tau'))
  config.votes.learners.one_shot.one_shot = True
  return config
