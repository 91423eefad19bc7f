"""Rotation of a game around its equilibrium, and the stable constant steps that follow from it."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nlhf_jax.games.game import Game
from nlhf_jax.linear_algebra import spectral_norm


def sigma(game: Game, log_pi: Float[Array, 'K']) -> Float[Array, '']:
  """The largest |eigenvalue| of the best response's Jacobian at pi, all of which are imaginary.

  It is the norm of D^1/2 A D^1/2 / tau on the tangent space, with D = diag(pi); tau sigma is the
  angular velocity of self-play. Undamped best responses converge if sigma is below 1.
  """
  root = jnp.exp(log_pi / 2)
  tangent = jnp.eye(len(root)) - jnp.outer(root, root)
  rotation = tangent @ (root[:, None] * game.payoff * root) @ tangent
  return spectral_norm(rotation) / game.tau


class StableSteps(NamedTuple):
  """Constant steps, in nats per unit of win probability, below which solvers are locally stable.

  Limits are cut at eta tau = 1; those of implicit steps may be infinite.
  """

  self_play: float
  nash_md: float
  mmd: float
  best_damping: float  # not a limit: the damping at which best responses converge fastest
  extragradient: float  # not a limit: a step at which it converges fast


def stable_steps(sigma: float, tau: float) -> StableSteps:
  """The stable steps of a game with the given `sigma`, for `tau` > 0.

  With x = eta tau, self-play is stable where (1 - x)^2 + sigma^2 x^2 < 1, and Nash-MD where
  (1 - x)^2 (1 + sigma^2 x^2) < 1; for large sigma the latter holds again for x close to 1. The
  fixed point of Nash-MD is not exactly the equilibrium at which sigma is taken, so that its limit
  is correct to first order only.
  """
  squared = float(sigma) ** 2
  roots = np.roots([squared, -2 * squared, 1 + squared, -2.0] if squared > 0 else [1.0, -2.0])
  real = roots[abs(roots.imag) < 1e-9].real
  pull = min([root for root in real if root > 0], default=1.0)
  return StableSteps(
    self_play=min(2 / (1 + squared), 1) / tau,
    nash_md=min(pull, 1) / tau,
    mmd=2 / (tau * (squared - 1)) if squared > 1 else float('inf'),
    best_damping=1 / (1 + squared),
    extragradient=0.9 / (tau * (1 + float(sigma))),
  )
