"""Rankings of policies from their table of win rates, and cycles in it.

The maximal lottery is the mixture of policies that no policy beats, Borda's count the mean win
rate, and Bradley-Terry strengths are the scores that fit the table best. Where the table has a
cycle they may disagree, and only the lottery is still meaningful (`games.choice`).
"""

from collections.abc import Mapping, Sequence
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from nlhf_jax.evaluation import intervals
from nlhf_jax.games import choice, exact, rlhf

BOOTSTRAP_SAMPLES = 200  # few, because a linear program is solved for each
MAX_CYCLES = 20

_fit_reward = jax.jit(rlhf.bradley_terry_reward)


def rank(policies: Sequence[str], values: np.ndarray) -> list[dict]:
  """Policies ranked by the maximal lottery of their table, the Nash equilibrium of the meta-game.

  The order is by the share in the lottery, then by the win rate against the lottery, which is 1/2
  in its support and at most 1/2 elsewhere. Of several lotteries it is the one of the largest
  entropy (`is_lottery_unique`).

  Args:
    policies: their names.
    values: P(row beats column) on each prompt, [n, M, M].

  Returns:
    rows with `policy`; `lottery`, its share, with the ends `low` and `high` of a 95 % bootstrap
    interval over prompts; `win_rate` against the lottery; `borda` and `bradley_terry`, with
    standard errors over prompts in `borda_error` and `bradley_terry_error`.
  """
  drawn = [
    exact.maximal_lottery(_payoff(mean))
    for mean in intervals.bootstrap_means(values, BOOTSTRAP_SAMPLES)
  ]
  low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
  lottery = exact.maximal_lottery(_payoff(np.mean(values, axis=0)))
  against = np.mean(values, axis=0) @ lottery
  order = sorted(range(len(policies)), key=lambda i: (-round(lottery[i], 6), -against[i]))
  columns = {'lottery': lottery, 'low': low, 'high': high, 'win_rate': against}
  columns['borda'], columns['borda_error'] = borda(values)
  columns['bradley_terry'], columns['bradley_terry_error'] = bradley_terry(values)
  return [
    {'policy': policies[i]} | {name: float(column[i]) for name, column in columns.items()}
    for i in order
  ]


def is_lottery_unique(values: np.ndarray) -> bool:
  """Whether the table of P(row beats column) on each prompt, [n, M, M], has one maximal lottery."""
  payoff = _payoff(np.mean(values, axis=0))
  return exact.is_unique_equilibrium(payoff, exact.maximal_lottery(payoff))


def _payoff(mean) -> np.ndarray:
  # Rounding errors of the means would make the payoff fail the check of antisymmetry.
  return (mean - mean.T) / 2


def borda(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean win rate against the others, [M], and its standard error over n prompts; NaN for one."""
  count, policies = values.shape[:2]
  others = max(policies - 1, 1)
  on_each = (values.sum(axis=2) - 0.5) / others
  return on_each.mean(axis=0), _standard_deviation(on_each) / np.sqrt(count)


def bradley_terry(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Strengths in log-odds, [M], with mean 0, and their standard errors; NaN for one prompt.

  One tie is added to every pair, so that a policy that always wins has a finite strength. The
  standard errors are sandwich estimates over prompts: they allow for dependent comparisons of one
  prompt, and for tables that no strengths fit.
  """
  count, policies = values.shape[:2]
  rates = (np.sum(values, axis=0) + 0.5) / (count + 1)
  payoff = jnp.asarray((rates - rates.T) / 2)
  strength = np.asarray(_fit_reward(payoff, jnp.full(policies, 1 / policies)), float)
  strength = strength - strength.mean()
  fitted = expit(strength[:, None] - strength)
  weight = fitted * (1 - fitted)
  np.fill_diagonal(weight, 0)
  curvature = np.diag(weight.sum(axis=1)) - weight
  slopes = (values - fitted).sum(axis=2)
  influence = (slopes - slopes.mean(axis=0)) @ np.linalg.pinv(curvature)
  return strength, _standard_deviation(influence) / np.sqrt(count)


def _standard_deviation(values) -> np.ndarray:
  return values.std(axis=0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], np.nan)


def cycles(policies: Sequence[str], table: Mapping) -> dict:
  """Cycles of three policies that each beat the next, those with the largest margins first.

  Args:
    policies: their names.
    table: `win_rate` and `holm_p`, adjusted p-values, of `tournament.summarise`.

  Returns:
    `count` of all cycles, and the `first` of them: `policies` in order, the `weakest` win rate, and
    whether all three win rates are `significant` at 5 % after Holm's correction.
  """
  rate, corrected = np.array(table['win_rate']), np.array(table['holm_p'])
  found = []
  for triple in permutations(range(len(policies)), 3):
    links = list(zip(triple, (*triple[1:], triple[0]), strict=True))
    if triple[0] == min(triple) and all(rate[link] > 0.5 for link in links):
      found.append(
        {
          'policies': [policies[i] for i in triple],
          'weakest': float(min(rate[link] for link in links)),
          'significant': bool(all(corrected[link] < 0.05 for link in links)),
        }
      )
  found.sort(key=lambda cycle: -cycle['weakest'])
  count = choice.three_cycles(rate - 0.5) if len(policies) > 2 else 0
  return {'count': count, 'first': found[:MAX_CYCLES]}
