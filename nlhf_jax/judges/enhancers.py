"""Enhancers: which response a vote compares with that of the main agent (arXiv 2402.07314).

The main agent is the policy as it is. Its enhancer need not be a good policy: it makes the vote
informative for the judge that is refitted. Here it is one of n further responses of the main agent,
chosen by what the judge knows so far, so that it is not trained. The exact enhancers of games are
in `sample_complexity.online`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax.algorithms.selection import take_responses
from nlhf_jax.errors import UserError
from nlhf_jax.judges.judge import Judge
from nlhf_jax.structs import Comparison

# How uncertain a judge is of each pair: symmetric, at least 0, and 0 between equal responses.
Spread = Callable[[Comparison], Float[Array, 'B K J']]


def best_of_n(comparison: Comparison, judge: Judge, spread: Spread) -> Int[Array, 'B']:
  """The candidate that wins most against all candidates, by the judge; the first of a tie.

  The rejection sampling of the paper's experiments: it is chosen to win, not to inform.
  """
  del spread
  candidates = comparison.right
  among = judge(Comparison(comparison.prompts, candidates, candidates))
  return jnp.argmax(jnp.mean(among, axis=2), axis=1)


def uncertain(comparison: Comparison, judge: Judge, spread: Spread) -> Int[Array, 'B']:
  """The candidate of the largest spread against the left response; the first of a tie.

  The paper's enhancer, which maximises the width of the comparison, on samples and pair by pair.
  """
  del judge
  return jnp.argmax(spread(comparison)[:, 0], axis=1)


NONE = 'none'  # no choice: another response of the main agent, or of the opponent of its algorithm
CHOICES = {choose.__name__: choose for choose in (best_of_n, uncertain)}
ENHANCERS = (NONE, *CHOICES)


def check_enhancer(name: str, candidates: int, field: str) -> None:
  """Refuses an unknown enhancer of the section `field`, and one that has nothing to choose from.

  Raises:
    UserError: the message names the field.
  """
  if name not in ENHANCERS:
    raise UserError(f"{field}.enhancer='{name}' must be one of {', '.join(ENHANCERS)}.")
  if name != NONE and candidates < 2:
    raise UserError(
      f"{field}.candidates={candidates}: '{name}' chooses among two or more; raise it, or set "
      "enhancer='none'."
    )


def choose_right(name: str, comparison: Comparison, judge: Judge, spread: Spread) -> Comparison:
  """The comparison of the left response with one of n right ones, [B, 1, 1], without a payoff.

  Args:
    name: one of `CHOICES`.
    comparison: a response of the main agent, and n candidates.
    judge: P - 1/2, fitted to the votes so far.
    spread: how uncertain it is.
  """
  chosen = CHOICES[name](comparison, judge, spread)
  return comparison._replace(right=take_responses(comparison.right, chosen[:, None]), payoff=None)
