"""Maps of preferences that leave a game a game: the odd part of psi(P), and the semantic gate.

Both act on payoffs A = P - 1/2 of pairs, never on their means, since psi of a mean is not the mean
of psi. Matrix games and language models use the same functions.
"""

from typing import Annotated

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nlhf_jax.ranges import Range

DEAD_BAND = 1e-6  # probabilities this near to 1/2 are a tie, or rounding would decide their sign


def log_odds(probability: Float[Array | np.ndarray, '...']) -> Float[Array | np.ndarray, '...']:
  """log P / (1 - P), with P cut to [1e-4, 1 - 1e-4]: at most 9.2."""
  probability = jnp.clip(probability, 1e-4, 1 - 1e-4)
  return jnp.log(probability) - jnp.log1p(-probability)


def sign(probability: Float[Array | np.ndarray, '...']) -> Float[Array | np.ndarray, '...']:
  """sign(P - 1/2), and 0 within `DEAD_BAND` of a tie."""
  margin = probability - 0.5
  return jnp.where(abs(margin) > DEAD_BAND, jnp.sign(margin), 0)


PAYOFF_MAPS = {
  'identity': lambda probability: probability,
  'log_odds': log_odds,
  'sign': sign,
  'square': jnp.square,
  'log': lambda probability: jnp.log(jnp.maximum(probability, 1e-4)),
}
PayoffMap = Annotated[str, Range(f'one of {", ".join(PAYOFF_MAPS)}', PAYOFF_MAPS.__contains__)]


def map_odd_part(
  name: str, payoff: Float[Array | np.ndarray, '...']
) -> Float[Array | np.ndarray, '...']:
  """(psi(P) - psi(1 - P)) / 2 with psi from `PAYOFF_MAPS`: antisymmetric, as A = P - 1/2 is.

  A map that is not odd plays a game that is not zero-sum (arXiv 2505.20627). Every odd map that
  keeps the sign of A selects a Condorcet winner, and no action outside the Smith set.

  Args:
    name: of psi.
    payoff: A = P - 1/2.
  """
  psi = PAYOFF_MAPS[name]
  return (psi(0.5 + payoff) - psi(0.5 - payoff)) / 2


def gate(
  payoff: Float[Array | np.ndarray, '...'], similarity: Float[Array | np.ndarray, '...']
) -> Float[Array | np.ndarray, '...']:
  """(1 - c) A: the semantic gate of S-SPPO (arXiv 2606.01561), a win rate nearer to 1/2.

  Args:
    payoff: A = P - 1/2.
    similarity: c in [0, 1] of each pair, symmetric, or the result is no game.
  """
  return (1 - similarity) * payoff
