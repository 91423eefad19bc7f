"""A preference game of your own: its equilibrium, and what a best response gains on a policy."""

import nlhf_jax as nlhf

PREFERENCES = [[0.5, 0.7, 0.3], [0.3, 0.5, 0.7], [0.7, 0.3, 0.5]]  # P(row is preferred to column)
REFERENCE = [0.6, 0.3, 0.1]

game = nlhf.games.make_game(PREFERENCES, REFERENCE, tau=0.1)
nash = nlhf.games.equilibrium(game)
print(f'equilibrium {nash.policy.round(3)}, exploitability {nash.exploitability:.1e}')
for policy in (REFERENCE, [0, 0, 1]):
  print(f'{policy}: exploitability {nlhf.games.exploitability(game, policy):.3f}')
