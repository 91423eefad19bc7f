"""Links from win probabilities to payoffs: the probability minus 1/2, or its log-odds."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax.scipy.special import expit, logit
from jaxtyping import Array, Float


class Link(NamedTuple):
  """An increasing function of a win probability, antisymmetric about 1/2, and its slope."""

  payoff: Callable[[Float[Array, '*B']], Float[Array, '*B']]
  slope: Callable[[Float[Array, '*B']], Float[Array, '*B']]


def probability() -> Link:
  """P - 1/2, so that gaps are win probabilities."""
  return Link(lambda p: p - 0.5, jnp.ones_like)


def log_odds(bound: float = 10.0) -> Link:
  """log P / (1 - P), cut to [-bound, bound]: under Bradley-Terry the difference of two rewards.

  The equilibrium is then the optimum of RLHF. An error of P is scaled by 1 / (P (1 - P)).
  """

  def clipped(p):
    return jnp.clip(p, expit(-bound), expit(bound))

  def slope(p):
    return 1 / (clipped(p) * (1 - clipped(p)))

  return Link(lambda p: jnp.clip(logit(clipped(p)), -bound, bound), slope)
