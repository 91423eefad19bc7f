"""Losses: (slot -> scores, comparison) -> one value an example. The caller takes the mean.

They know nothing of models, tokenizers or configs, and are made of one quantity, the log-ratio

    rho(y) = log pi(y|x) - sum_m w_m log pi_m(y|x)

to a mixture of anchors. Sums over tokens are plain sums, unless a name says otherwise: dividing by
length changes the objective.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from nlhf_jax.algorithms.algorithm import Loss, mixture
from nlhf_jax.algorithms.naming import named
from nlhf_jax.algorithms.selection import mean_payoff


def reward_to_go(x: Float[Array, '*rows T']) -> Float[Array, '*rows T']:
  """sum_{m >= n} x_m."""
  return lax.cumsum(x, axis=x.ndim - 1, reverse=True)


def log_ratio(scores, side: str, anchors) -> Float[Array, 'B K T']:
  """log pi - sum_m w_m log pi_m of each token of the `left` or the `right` responses, in nats."""
  anchored = sum(weight * getattr(scores[slot], side) for slot, weight in anchors.items())
  return getattr(scores['policy'], side) - anchored


def rho(scores, side: str, anchors) -> Float[Array, 'B K']:
  """The log-ratio of whole responses: the sum over their tokens."""
  return jnp.sum(log_ratio(scores, side, anchors), axis=-1)


@named
def policy_gradient(**prices: float) -> Loss:
  """A loss whose gradient is minus the policy gradient of the regularised preference.

      g = sum_n grad log pi(y_n|.) [P(y > y'|x) - 1/2 - sum_m tau_m to_go(log(pi / pi_m))_n]

  (arXiv 2312.00886, eq. 13, with log-ratios as reward-to-go.) `prices` gives tau_m of each slot
  that leaving costs, in win probability a nat. Reads the left scores only. Returns [B, K, J].
  """
  prices = mixture(**prices)

  def loss(scores, comparison):
    log_pi = scores['policy'].left
    costs = sum(
      price * reward_to_go(lax.stop_gradient(log_ratio(scores, 'left', {slot: 1.0})))
      for slot, price in prices.items()
    )
    regulariser = jnp.sum(log_pi * costs, axis=-1, keepdims=True)
    return regulariser - jnp.sum(log_pi, axis=-1, keepdims=True) * comparison.payoff

  return loss


def likelihood(scores, comparison) -> Float[Array, 'B K']:
  """-log pi(y|x) of the left responses, in nats a response."""
  del comparison
  return -jnp.sum(scores['policy'].left, axis=-1)


def cross_entropy(scores, comparison) -> Float[Array, 'B K J']:
  """-p log P - (1 - p) log(1 - P), P = sigmoid(score), p = payoff + 1/2: a vote or a share of them.

  The slot `policy` holds a preference network, whose score is one logit [B, K, J] a pair.
  """
  logit = scores['policy']
  return jax.nn.softplus(logit) - (comparison.payoff + 0.5) * logit


def payoff_to_label(payoff: Float[Array, '...']) -> Float[Array, '...']:
  """p = payoff + 1/2: how much of a comparison the left response wins."""
  return payoff + 0.5


@named
def smoothed_label(epsilon: float) -> Callable[[Array], Array]:
  """p of a payoff of which a share `epsilon` is taken for flipped: 1/2 + (1 - 2 eps) payoff."""
  return lambda payoff: 0.5 + (1 - 2 * epsilon) * payoff


@named
def debiased_label(epsilon: float) -> Callable[[Array], Array]:
  """The p, perhaps outside [0, 1], whose mean over flips of a share `epsilon` is the true one."""
  return lambda payoff: 0.5 + payoff / (1 - 2 * epsilon)


@named
def pairwise_loss(
  link: Callable[[Array], Array],
  *,
  beta: float = 1.0,
  margin: float = 0.0,
  label: Callable[[Array], Array] = payoff_to_label,
  per_token: bool = False,
  **anchors: float,
) -> Loss:
  """p link(margin - beta z) + (1 - p) link(margin + beta z) of every pair, z = rho(y) - rho(y').

  Links: softplus (DPO), square (IPO: at beta = 1 the target of z is 2 payoff margin), relu (hinge).

  Args:
    link: what falls as the winner's lead grows.
    beta: scale of the lead.
    margin: the lead asked for.
    label: payoff -> p.
    per_token: divide each rho by the tokens of its response.
    anchors: slot -> weight in rho.

  Returns:
    [B, K, J].
  """

  def value(scores, comparison, side):
    ratio = rho(scores, side, anchors)
    return ratio / jnp.sum(getattr(comparison, side).mask, axis=-1) if per_token else ratio

  def loss(scores, comparison):
    left, right = (value(scores, comparison, side) for side in ('left', 'right'))
    lead = beta * (left[:, :, None] - right[:, None, :])
    p = share(comparison.payoff)
    return p * link(margin - lead) + (1 - p) * link(margin + lead)

  return loss


@named
def regression(eta: float, **anchors: float) -> Loss:
  """(rho(y) - eta u(y))^2 of every left response, u its worth: SPPO's. Returns [B, K]."""

  def loss(scores, comparison):
    return jnp.square(rho(scores, 'left', anchors) - eta * mean_payoff(comparison))

  return loss


@named
def prospect(beta: float, desirable: float, undesirable: float, **anchors: float) -> Loss:
  """KTO's: w_D p sigmoid(beta (z - rho)) + w_U (1 - p) sigmoid(beta (rho - z)), p = u + 1/2.

  z = max(0, mean of rho over the mismatched responses), which are the second half of the left side
  (`with_mismatches`), is not differentiated. Returns [B, K / 2].
  """

  def loss(scores, comparison):
    ratio, mismatched = jnp.split(rho(scores, 'left', anchors), 2, axis=1)
    z = lax.stop_gradient(jnp.maximum(0, jnp.mean(mismatched)))
    lead, p = beta * (ratio - z), payoff_to_label(jnp.split(mean_payoff(comparison), 2, axis=1)[0])
    return desirable * p * jax.nn.sigmoid(-lead) + undesirable * (1 - p) * jax.nn.sigmoid(lead)

  return loss


def winner_likelihood(scores, comparison) -> Float[Array, 'B K J']:
  """-log pi of the better response of every pair: -p log pi(y) - (1 - p) log pi(y')."""
  left, right = (jnp.sum(side, axis=-1) for side in scores['policy'])
  p = payoff_to_label(comparison.payoff)
  return -p * left[:, :, None] - (1 - p) * right[:, None, :]


def right_log_prob(scores, comparison) -> Float[Array, 'B 1 J']:
  """log pi(y'|x) of the right responses: minimised, it looks away from what they say."""
  del comparison
  return jnp.sum(scores['policy'].right, axis=-1)[:, None, :]


@named
def squared_ratio(**anchors: float) -> Loss:
  """rho(y)^2 of the left responses: a reverse KL, as its gradient is 2 rho grad log pi. [B, K]."""
  return lambda scores, comparison: jnp.square(rho(scores, 'left', anchors))


@named
def forward_kl(cap: float, **anchors: float) -> Loss:
  """exp(min(-rho(y), cap)) of the left responses, mu / pi: a forward KL on samples. [B, K]."""
  return lambda scores, comparison: jnp.exp(jnp.minimum(-rho(scores, 'left', anchors), cap))


@named
def weighted_sum(*terms: tuple[float, Loss]) -> Loss:
  """The weighted sum of losses of the same shape."""
  return lambda scores, comparison: sum(weight * loss(scores, comparison) for weight, loss in terms)
