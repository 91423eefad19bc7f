"""The gap of the equilibrium of an estimate, exactly and to leading order.

The error of an estimate A^ is Delta = A - A^. The gap of its equilibrium pi^ follows from Delta
without searching for a best response.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from nlhf_jax.sample_complexity.links import Link
from nlhf_jax.sample_complexity.setting import Setting


def plug_in_gap(
  setting: Setting,
  payoff: Float[Array, 'X K K'],
  estimated: Float[Array, 'X K K'],
  log_pi: Float[Array, 'X K'],
) -> Float[Array, '']:
  """G(pi^) = tau log E_{a ~ pi^} exp(Z_a / tau) with Z = Delta pi^, for the equilibrium of A^.

  An identity: pi^ is its own best response under A^, so that the gap depends on Delta only.
  """
  z = jnp.einsum('xab,xb->xa', payoff - estimated, jnp.exp(log_pi)) / setting.tau
  # E Z = 0: removing the first-order term keeps small gaps accurate.
  small = jnp.minimum(z, 1)
  rest = jnp.log1p((jnp.exp(log_pi) * (jnp.expm1(small) - small)).sum(axis=1))
  whole = jax.nn.logsumexp(log_pi + z, axis=1)
  return setting.prompts @ (setting.tau * jnp.where(z.max(axis=1) < 1, rest, whole))


def expected_gap(
  setting: Setting,
  link: Link,
  preference: Float[Array, 'X K K'],
  counts: Float[Array, 'X K K'],
  log_pi: Float[Array, 'X K'],
) -> Float[Array, '']:
  """E G(pi^) of the tabular class to leading order, for given counts.

  1 / (2 tau) sum_a pi_a sum_{b != a} pi_b^2 P_ab (1 - P_ab) / n_ab: as G is Var_pi(Z) / (2 tau) for
  small errors. The slope of the link enters squared.
  """
  pi = jnp.exp(log_pi)
  noise = preference * (1 - preference) * link.slope(preference) ** 2
  itself = jnp.eye(pi.shape[-1], dtype=bool)
  each = jnp.where(itself, 0, noise / jnp.where(itself, 1, counts))
  spread = jnp.einsum('xa,xb,xab->x', pi, pi**2, each)
  return setting.prompts @ spread / (2 * setting.tau)


def log_log_slopes(samples: ArrayLike, gaps: ArrayLike) -> np.ndarray:
  """The slope of log gap in log n between neighbouring sample sizes, [R - 1] from [R]."""
  with np.errstate(divide='ignore', invalid='ignore'):  # gaps of a finite class may be 0
    return np.diff(np.log(np.asarray(gaps))) / np.diff(np.log(np.asarray(samples)))


def confidence_interval(values: Float[Array, 'S *R']) -> tuple[jax.Array, jax.Array]:
  """The mean over seeds, and half of its 95 % interval: 1.96 standard errors."""
  error = jnp.std(values, axis=0, ddof=1) / jnp.sqrt(len(values))
  return values.mean(axis=0), 1.96 * error
