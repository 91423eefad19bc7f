"""How a game turns around its equilibrium, and the constant steps that this allows."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nlhf_jax.games.game import Game


def sigma(game: Game, log_pi: Float[Array, 'K']) -> Float[Array, '']:
  """The largest |eigenvalue| of the best response's Jacobian at pi, all of which are imaginary.

  The norm of D^1/2 A D^1/2 / tau on the tangent space, with D = diag(pi); tau sigma is the omega
  with which self-play turns. Undamped best responses converge if it is below 1.
  """
  root = jnp.exp(log_pi / 2)
  tangent = jnp.eye(len(root)) - jnp.outer(root, root)
  turning = tangent @ (root[:, None] * game.payoff * root) @ tangent
  return jnp.linalg.norm(turning, 2) / game.tau


class StableSteps(NamedTuple):
  """Constant steps, in nats a unit of win probability. Below its limit a solver is locally stable.

  Limits beyond which eta tau > 1 are cut there, those of an implicit step are infinite.
  """

  self_play: float
  nash_md: float
  mmd: float
  best_damping: float  # of best responses, fastest at this one
  extragradient: float  # not a limit: a step that converges fast


def stable_steps(sigma: float, tau: float) -> StableSteps:
  """The steps that a game allows whose spectrum is `sigma` at temperature `tau` > 0.

  With x = eta tau, self-play is stable where (1 - x)^2 + sigma^2 x^2 < 1, and Nash-MD where
  (1 - x)^2 (1 + sigma^2 x^2) < 1; in a strongly turning game the latter holds again close to 1.
  Nash-MD turns with the spectrum at its own resting point, which a step biases; taken at the
  equilibrium, its limit is right to first order.
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
