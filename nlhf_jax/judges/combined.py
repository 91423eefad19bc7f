"""Judges that are combined from other judges: antisymmetric functions of several payoffs.

Each function takes the payoffs A_m = P_m - 1/2 of M judges, [M, ...], and returns one payoff, in
which P(y > y') + P(y' > y) = 1 again. NaN of one judge is NaN of the combination. None of them
guarantees anything against the worst of the judges: that is what `games.robust` solves, and
`maxmin` trains a policy for.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nlhf_jax.judges.judge import Judge
from nlhf_jax.ranges import NonNegative, Positive

Payoffs = Float[Array | np.ndarray, 'M *shape']
Payoff = Float[Array | np.ndarray, '*shape']


def mean(payoffs: Payoffs) -> Payoff:
  """The mean payoff: the win probability under a judge drawn at random.

  It does not protect the minority: a policy may lose under one judge always if it wins under the
  others.
  """
  return payoffs.mean(axis=0)


def midrange(payoffs: Payoffs) -> Payoff:
  """(least + largest) / 2: the centre of what the judges think of each pair.

  It does not bound the loss under the worst judge: the most extreme judge on either side decides,
  so one odd judge moves it more than it moves the mean.
  """
  return (payoffs.min(axis=0) + payoffs.max(axis=0)) / 2


def shrink(payoffs: Payoffs, spreads: float) -> Payoff:
  """sign(A) max(|A| - spreads sd, 0): the mean A, less some standard deviations (over M) of it.

  Pairs on which the judges differ by more than they prefer are ties. It does not penalise a policy
  for being there: ties are won half of the time, whatever the worst judge thinks.
  """
  average = payoffs.mean(axis=0)
  margin = abs(average) - spreads * payoffs.std(axis=0)
  return jnp.sign(average) * jnp.maximum(margin, 0)


def agree(payoffs: Payoffs) -> Payoff:
  """max(least, 0) + min(largest, 0): the payoff that all judges grant; 0 where signs differ.

  It does not avoid pairs on which the judges differ: a policy that wins where all agree may lose
  by any margin where they do not.
  """
  return jnp.maximum(payoffs.min(axis=0), 0) + jnp.minimum(payoffs.max(axis=0), 0)


class CombinedSettings(NamedTuple):
  """Standard deviations that `shrink` subtracts, and the step of the weights of `maxmin`."""

  spreads: NonNegative
  step: Positive


class Combination(NamedTuple):
  """Which judges are combined, by which rule, and the rule's parameter, if it has one."""

  by: str
  judges: tuple[str, ...]
  parameter: float | None = None

  @property
  def rule(self) -> Callable[[Array], Array]:
    """[M, ...] -> [...]."""
    rule = RULES[self.by]
    return rule if self.parameter is None else partial(rule, spreads=self.parameter)


RULES = {rule.__name__: rule for rule in (mean, midrange, shrink, agree)}
MAXMIN = 'maxmin'  # weights groups while a policy trains, and is no judge of a tournament
PARAMETERS = {'shrink': 'spreads', MAXMIN: 'step'}  # rule -> its field of the section `combined`


def combine_judges(judges: Sequence[Judge], rule: Callable[[Array], Array]) -> Judge:
  """The judge whose payoff is that of a rule.

  Args:
    judges: return P - 1/2, [B, K, J].
    rule: [M, B, K, J] -> [B, K, J].
  """
  combine = jax.jit(lambda payoffs: rule(jnp.stack(payoffs)))
  return lambda comparison: combine([judge(comparison) for judge in judges])
