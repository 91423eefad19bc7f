"""A preference game with a few actions: every solver, against the exact equilibrium.

nlhf run --config=tabular
nlhf run --config=tabular:blotto --config.only=nash_md,newton
nlhf run --config=tabular:file --config.game.path=MATRIX.csv
"""

from ml_collections import ConfigDict

GAMES = {
  'three_raters': dict(),
  'rater_types': dict(e=0.1),
  'dice': dict(),
  'elo_example': dict(),
  'rock_paper_scissors': dict(a=0.1, b=0.15, c=0.25),
  'strict_cycle': dict(actions=3),
  'bradley_terry': dict(rewards='0, 1, 2, 3'),
  'random_population': dict(actions=5, raters=9, seed=0),
  'random_disc': dict(actions=7, seed=0),
  'blotto': dict(soldiers=5, fields=3),
  'morra': dict(fingers=3),
  'random': dict(actions=10, seed=0),
  'dial': dict(actions=10, cyclic=0.5, seed=0),
  'prompts': dict(actions=3, count=8, seed=0),
  'file': dict(path='', entries='probabilities', tolerance=1e-6, scale=1.0, prior=0.0),
}


def row(solver, updates=10_000, **arguments):
  """A solver, its number of updates and its arguments."""
  return dict(solver=solver, updates=updates, arguments=arguments)


def get_config(game='three_raters'):
  if game not in GAMES:
    raise ValueError(f"there is no game '{game}'; use one of {', '.join(GAMES)}.")
  eta = 0.5
  return ConfigDict(
    dict(
      experiment='tabular',
      game=dict(name=game, **GAMES[game]),
      tau=0.1,
      # Probabilities, separated by commas, or 'uniform'.
      reference='0.6, 0.3, 0.1' if game == 'three_raters' else 'uniform',
      start='reference',
      # Of the pairs that RLHF learns from.
      sampling='0.1, 0.3, 0.6' if game == 'three_raters' else 'uniform',
      only='',  # the solvers to run, separated by commas; empty for all
      solvers=ConfigDict(
        dict(
          nash_md=row('nash_md', eta=eta),
          nash_md_decreasing=row('nash_md_decreasing'),
          nash_ema=row('nash_ema', eta=eta, rate=0.1),
          self_play=row('self_play', eta=eta),
          mmd=row('mmd', eta=eta),
          extragradient=row('extragradient', eta=eta),
          optimistic=row('optimistic', eta=eta),
          best_response=row('best_response', damping=0.05),
          smooth_fictitious_play=row('smooth_fictitious_play'),
          newton=row('newton', updates=50),
          anderson=row('anderson', updates=200, memory=10),
          proximal_point=row('proximal_point', updates=60, eta=10.0, inner=8),
          mwu=row('mwu', eta=eta),
          optimistic_mwu=row('optimistic_mwu', eta=eta),
          fictitious_play=row('fictitious_play'),
          regret_matching=row('regret_matching'),
          regret_matching_plus=row('regret_matching_plus'),
          mpo=row('mpo', eta=eta, every=100),
          mmd_ema=row('mmd_ema', eta=eta, rate=0.01),
          comal=row('comal', eta=1 / eta, every=400),
        ),
        sort_keys=False,
      ),
    ),
    sort_keys=False,
  )
