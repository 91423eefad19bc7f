"""The order of policies, by what they win against each other: three rankings, and cycles.

The maximal lottery asks what no policy beats, Borda's count what wins most on average, and Bradley
and Terry's strengths which scores explain the table best; where there is a cycle they need not
agree, and there the lottery is the one that means something (`games.choice`).
"""

from collections.abc import Mapping, Sequence
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from nlhf_jax.evaluation import intervals
from nlhf_jax.games import choice, exact, rlhf

BOOTSTRAP_SAMPLES = 200  # of the prompts; each has a linear program of its own
MAX_CYCLES = 20

_fitted = jax.jit(rlhf.bradley_terry_reward)


def rank(policies: Sequence[str], values: np.ndarray) -> list[dict]:
  """The policies by the maximal lottery of their table, the Nash equilibrium of the meta-game.

  Best first: by the share in the lottery, then by the win rate against it, which is 1/2 in its
  support and at most that outside of it.

  Args:
    policies: their names.
    values: P(row beats column) on each prompt, [n, M, M].

  Returns:
    `policy`, `lottery` with `low` and `high` (95 % of draws of the prompts, with replacement),
    `win_rate`, and with standard errors over prompts `borda` and `bradley_terry`, as `..._error`.
  """

  def lottery_of(mean):
    payoff = mean - 0.5
    # Rounding of the means must not look like a payoff that is not antisymmetric.
    return exact.maximal_lottery((payoff - payoff.T) / 2)

  drawn = [lottery_of(mean) for mean in intervals.bootstrap_means(values, BOOTSTRAP_SAMPLES)]
  low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
  lottery = lottery_of(np.mean(values, axis=0))
  against = np.mean(values, axis=0) @ lottery
  order = sorted(range(len(policies)), key=lambda i: (-round(lottery[i], 9), -against[i]))
  columns = {'lottery': lottery, 'low': low, 'high': high, 'win_rate': against}
  columns['borda'], columns['borda_error'] = borda(values)
  columns['bradley_terry'], columns['bradley_terry_error'] = bradley_terry(values)
  return [
    {'policy': policies[i]} | {name: float(column[i]) for name, column in columns.items()}
    for i in order
  ]


def borda(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean win rate against the others, [M], and its standard error over n prompts; NaN for one."""
  count, policies = values.shape[:2]
  others = max(policies - 1, 1)
  on_each = (values.sum(axis=2) - 0.5) / others
  return on_each.mean(axis=0), _deviation(on_each) / np.sqrt(count)


def bradley_terry(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Strengths in log-odds, [M], whose mean is 0, and their standard errors; NaN for one prompt.

  The fit is to win rates with one more draw for every pair, so that one that always wins has a
  strength too. Errors are the sandwich's, over prompts: they hold though a prompt's comparisons
  depend on each other, and where no strengths explain the table.
  """
  count, policies = values.shape[:2]
  rates = (np.sum(values, axis=0) + 0.5) / (count + 1)
  payoff = jnp.asarray((rates - rates.T) / 2)
  strength = np.asarray(_fitted(payoff, jnp.full(policies, 1 / policies)), float)
  strength = strength - strength.mean()
  said = expit(strength[:, None] - strength)
  weight = said * (1 - said)
  np.fill_diagonal(weight, 0)
  curvature = np.diag(weight.sum(axis=1)) - weight
  slopes = (values - said).sum(axis=2)
  moved = (slopes - slopes.mean(axis=0)) @ np.linalg.pinv(curvature)
  return strength, _deviation(moved) / np.sqrt(count)


def _deviation(values) -> np.ndarray:
  return values.std(axis=0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], np.nan)


def cycles(policies: Sequence[str], table: Mapping) -> dict:
  """Three policies of which each beats the next, those first whose weakest link is strongest.

  Args:
    policies: their names.
    table: `win_rate` and `corrected`, p-values, as `tournament.summarise` gives them.

  Returns:
    `count` of all there are and the `first` of them: `policies` in order, the `weakest` win rate,
    and whether all three links are `certain`: at 95 %, with many pairs in mind.
  """
  rate, corrected = np.array(table['win_rate']), np.array(table['corrected'])
  found = []
  for triple in permutations(range(len(policies)), 3):
    links = list(zip(triple, (*triple[1:], triple[0]), strict=True))
    if triple[0] == min(triple) and all(rate[link] > 0.5 for link in links):
      found.append(
        {
          'policies': [policies[i] for i in triple],
          'weakest': float(min(rate[link] for link in links)),
          'certain': bool(all(corrected[link] < 0.05 for link in links)),
        }
      )
  found.sort(key=lambda cycle: -cycle['weakest'])
  count = choice.three_cycles(rate - 0.5) if len(policies) > 2 else 0
  return {'count': count, 'first': found[:MAX_CYCLES]}
