"""Every kind of experiment at a size that runs for seconds, with several checkpoints in each stage.

python -m nlhf_jax.main --config=tests/chaos/toy.py:language
"""

from nlhf_jax.configs import (
  base,
  dpo,
  evaluate,
  nash_md,
  preferences,
  sample_complexity,
  tabular,
  token_game,
)


def _small(config):
  """The config with a tiny model and short stages."""
  config.model.update(width=16, layers=1, heads=2, key_heads=1, head_size=8, hidden=16)
  config.data.update(posts=64, held_out=8)
  config.tournament.update(prompts=8, batch=4)
  for row in (config.sft, config.preference_model):
    row.update(steps=30, batch=8, evaluate_every=7)
  for row in (config.reward_model, config.general_preference_model):
    row.update(steps=12, batch=8, evaluate_every=5)
  for row in config.policies.values():
    row.update(steps=12, batch=8, evaluate_every=5)
  return config


def _language():
  config = _small(nash_md.get_config())
  config.policies.self_play.steps = 4
  return config


def _exploiter():
  config = _small(dpo.get_config())
  config.exploiter = base.exploiter(
    'best_response', steps=6, batch=8, learning_rate=1e-3, evaluate_every=3, b1=0.0, tau=0.0
  )
  return config


def _token_game():
  config = token_game.get_config()
  config.model.update(width=16, heads=2, key_heads=1, hidden=16)
  for name in set(config.methods) - {'nash_md_pg', 'egpo'}:
    del config.methods[name]
  for name in set(config.votes.learners) - {'online_ipo'}:
    del config.votes.learners[name]
  for row in (
    *(method.training for method in config.methods.values()),
    *config.votes.learners.values(),
  ):
    row.update(steps=12, batch=10, evaluate_every=4)
  return config


def _evaluate():
  config = _small(evaluate.get_config('synthetic'))
  config.judges = 'learned,lengths'
  config.tournament.length = 6
  return config


def _sample_complexity():
  config = sample_complexity.get_config()
  config.seeds = 2
  for part in (config.rates, config.offline, config.rewards):
    part.update(votes='1e2, 1e3', taus='0.3')
  config.offline.update(updates=10, others='1')
  config.online.update(taus='0.3', rounds=3)
  return config


def _tabular():
  config = tabular.get_config()
  config.only = 'nash_md, newton'
  return config


KINDS = {
  'language': _language,
  'exploiter': _exploiter,
  'judges': lambda: _small(preferences.get_config()),
  'token_game': _token_game,
  'evaluate': _evaluate,
  'sample_complexity': _sample_complexity,
  'tabular': _tabular,
}


def get_config(kind='language'):
  return KINDS[kind]()
