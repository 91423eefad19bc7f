"""How many votes an equilibrium needs: rates, pessimism offline, enhancers online, rewards.

python -m nlhf_jax.main --config=configs/finite_sample.py
python -m nlhf_jax.main --config=configs/finite_sample.py:bilinear --config.seeds=30
"""

from ml_collections import ConfigDict

WORLDS = {
  'anything': dict(ridge=1.0),
  'bilinear': dict(rank=4, ridge=1.0),
  'bradley_terry': dict(ridge=1e-6),
  'listed': dict(count=50, ridge=1.0),
}


def get_config(world='anything'):
  if world not in WORLDS:
    raise ValueError(f"there is no world '{world}'; use one of {', '.join(WORLDS)}.")
  votes = '1e2, 3e2, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6, 1e7'
  return ConfigDict(
    dict(
      experiment='finite_sample',
      payoff='log_odds' if world == 'bradley_terry' else 'probability',
      seed=0,
      seeds=100,
      rates=dict(
        world=dict(name=world, actions=6, **WORLDS[world]),
        taus='0.5, 0.1, 0.02, 0.005',
        reference=0.5,  # every action is played e^-0.5 times as much as the one before
        votes=votes,
      ),
      offline=dict(
        # By default one action that beats all others, so that few pairs may be enough.
        world=dict(name='star', actions=8, lead=0.1, ridge=1.0)
        if world == 'anything'
        else dict(name=world, actions=8, **WORLDS[world]),
        taus='0.3, 0.02',
        reference=0.0,
        votes=votes,
        others='1, 1e-3',  # what pairs without the most played action weigh in the data
        beta=1.0,
        updates=100,
      ),
      online=dict(
        world=dict(name=world, actions=8, **WORLDS[world]),
        taus='0.3, 0.03',
        reference=2.0,
        rounds=80,
        batch=50,
        responses=4,  # of best of n
        beta=1.0,  # of the optimistic enhancer
      ),
      rewards=dict(
        world=dict(name='bradley_terry', actions=6, **WORLDS['bradley_terry']),
        taus='1, 0.2',
        reference=0.5,
        votes=votes,
      ),
    ),
    sort_keys=False,
  )
