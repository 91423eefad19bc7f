"""How intransitive a judge is, on any set of responses to a prompt."""

from math import comb

import numpy as np

from nlhf_jax.games import choice


def summarise(payoffs: np.ndarray) -> dict[str, float | int]:
  """Means over prompts, from payoffs P - 1/2 of all pairs of K responses each, [B, K, K], K >= 3.

  `three_cycles` is the share of triples in which each response beats the next; `cyclic_energy` the
  share of the squared payoffs that no scores can make (Hodge), 0 for scores that are compared by
  their difference and 1 for a pure cycle; `condorcet` how often a response beats all others.
  """
  count = payoffs.shape[-1]
  return {
    'prompts': len(payoffs),
    'responses': count,
    'three_cycles': float(np.mean([choice.three_cycles(a) for a in payoffs]) / comb(count, 3)),
    'cyclic_energy': float(np.mean([1 - choice.hodge(a).share for a in payoffs])),
    'condorcet': float(np.mean([choice.condorcet_winner(a) is not None for a in payoffs])),
  }
