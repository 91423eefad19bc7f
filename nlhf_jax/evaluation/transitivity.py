"""Intransitivity of a judge on a set of responses to each prompt."""

from math import comb

import numpy as np

from nlhf_jax.games import choice


def summarise(payoffs: np.ndarray) -> dict[str, float | int]:
  """Means over prompts, from the payoffs P - 1/2 of all pairs of K >= 3 responses, [B, K, K].

  `three_cycles` is the share of triples in which each response beats the next. `cyclic_energy` is
  the share of the squared payoffs that no differences of scores can represent (Hodge): 0 for a
  judge with scores, 1 for a pure cycle. `condorcet` is how often one response beats all others.
  """
  count = payoffs.shape[-1]
  return {
    'prompts': len(payoffs),
    'responses': count,
    'three_cycles': float(np.mean([choice.three_cycles(a) for a in payoffs]) / comb(count, 3)),
    'cyclic_energy': float(np.mean([1 - choice.hodge(a).share for a in payoffs])),
    'condorcet': float(np.mean([choice.condorcet_winner(a) is not None for a in payoffs])),
  }
