"""Sample complexity of equilibria in votes: rates, offline pessimism, online exploration, rewards.

nlhf run --config=sample_complexity
nlhf run --config=sample_complexity:bilinear --config.seeds=30
"""

from ml_collections import ConfigDict

WORLDS = {
  'anything': dict(ridge=1.0),
  'star': dict(lead=0.1, ridge=1.0),
  'bilinear': dict(rank=4, ridge=1.0),
  'bradley_terry': dict(ridge=1e-6),
  'listed': dict(count=50, ridge=1.0),
}


def make_world(world, actions):
  """The settings of a world, by its name, with that number of actions."""
  return dict(name=world, actions=actions, **WORLDS[world])


def get_config(world='anything'):
  if world not in WORLDS:
    raise ValueError(f"there is no world '{world}'; use one of {', '.join(WORLDS)}.")
  votes = '1e2, 3e2, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6, 1e7'
  return ConfigDict(
    dict(
      experiment='sample_complexity',
      payoff='log_odds' if world == 'bradley_terry' else 'probability',
      seed=0,
      seeds=100,
      rates=dict(
        world=make_world(world, actions=6),
        taus='0.5, 0.1, 0.02, 0.005',
        reference=0.5,  # each action has e^-0.5 times the probability of the one before
        votes=votes,
      ),
      offline=dict(
        # By default one action beats all others, so that votes on few pairs may be enough.
        world=make_world('star' if world == 'anything' else world, actions=8),
        taus='0.3, 0.02',
        reference=0.0,
        votes=votes,
        others='1, 1e-3',  # weight in the data of pairs without the safest action
        beta=1.0,
        updates=100,
      ),
      online=dict(
        world=make_world(world, actions=8),
        taus='0.3, 0.03',
        reference=2.0,
        rounds=80,
        batch=50,
        responses=4,  # n of the strategy best of n
        beta=1.0,  # bonus of the optimistic enhancer
      ),
      rewards=dict(
        world=make_world('bradley_terry', actions=6),
        taus='1, 0.2',
        reference=0.5,
        votes=votes,
      ),
    ),
    sort_keys=False,
  )
