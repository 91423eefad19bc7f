"""Losses: (slot -> scores, payoff) -> one value an example. The caller takes the mean.

They know nothing of models, tokenizers or configs. Sums over tokens are plain sums: dividing by
length would change the objective.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from nlhf_jax.algorithms.algorithm import Loss


def to_go(x: Float[Array, '*rows T']) -> Float[Array, '*rows T']:
  """sum_{m >= n} x_m."""
  return lax.cumsum(x, axis=x.ndim - 1, reverse=True)


def policy_gradient(tau: float) -> Loss:
  """A loss whose gradient is minus the policy gradient of the regularised preference.

      g = sum_n grad log pi(y_n|.) [P(y > y'|x) - 1/2 - tau sum_{m>=n} log(pi(y_m|.) / mu(y_m|.))]

  (arXiv 2312.00886, eq. 13, with the log-ratio as reward-to-go). mu is the slot `reference`; `tau`
  is in win probability a nat. Reads the left scores only. Returns [B, K, J].
  """

  def loss(scores, payoff):
    log_pi = scores['policy'].left
    ratio = lax.stop_gradient(log_pi) - scores['reference'].left
    regulariser = tau * jnp.sum(log_pi * to_go(ratio), axis=-1, keepdims=True)
    return regulariser - jnp.sum(log_pi, axis=-1, keepdims=True) * payoff

  return loss


def likelihood(scores, payoff) -> Float[Array, 'B K']:
  """-log pi(y|x) of the left responses, in nats a response. The payoff is not read."""
  del payoff
  return -jnp.sum(scores['policy'].left, axis=-1)


def cross_entropy(scores, payoff) -> Float[Array, 'B K J']:
  """-p log P - (1 - p) log(1 - P), P = sigmoid(score), p = payoff + 1/2: a vote or a share of them.

  The slot `policy` holds a preference network, whose score is one logit [B, K, J] a pair.
  """
  logit = scores['policy']
  return jax.nn.softplus(logit) - (payoff + 0.5) * logit
