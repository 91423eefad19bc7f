"""Losses: (slot -> scores, comparison) -> one value per example. The caller takes the mean.

They know nothing of models, tokenizers or configs, and are functions of one quantity, the log-ratio

    rho(y) = log pi(y|x) - sum_m w_m log pi_m(y|x)

to a weighted mixture of other slots, the anchors. Log-probabilities are summed over tokens; only
the values `per_token` and `log_odds_per_token` divide by the length, which changes the objective.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nlhf_jax.algorithms.algorithm import Loss, mixture
from nlhf_jax.algorithms.described import described
from nlhf_jax.algorithms.selection import mean_payoff


def reward_to_go(x: Float[Array, '*rows T']) -> Float[Array, '*rows T']:
  """sum_{m >= n} x_m for every token n."""
  return lax.cumsum(x, axis=x.ndim - 1, reverse=True)


def log_ratio(scores, side: str, anchors) -> Float[Array, 'B K T']:
  """log pi - sum_m w_m log pi_m of each token of the `left` or the `right` responses, in nats."""
  anchored = sum(weight * getattr(scores[slot], side) for slot, weight in anchors.items())
  return getattr(scores['policy'], side) - anchored


def rho(scores, side: str, anchors) -> Float[Array, 'B K']:
  """The log-ratio of whole responses: the sum over their tokens."""
  return jnp.sum(log_ratio(scores, side, anchors), axis=-1)


@described
def policy_gradient(**kl_coefficients: float) -> Loss:
  """A loss whose gradient is minus the policy gradient of the regularised preference.

      g = sum_n grad log pi(y_n|.) [P(y > y'|x) - 1/2 - sum_m tau_m reward_to_go(log(pi / pi_m))_n]

  (arXiv 2312.00886, eq. 13, with log-ratios as reward-to-go.) Reads the left scores only.

  Args:
    kl_coefficients: slot m -> tau_m, the coefficient of KL(pi, pi_m), in win probability per nat.

  Returns:
    [B, K, J].
  """
  kl_coefficients = mixture(**kl_coefficients)

  def loss(scores, comparison):
    log_pi = scores['policy'].left
    penalties = sum(
      coefficient * reward_to_go(lax.stop_gradient(log_ratio(scores, 'left', {slot: 1.0})))
      for slot, coefficient in kl_coefficients.items()
    )
    regulariser = jnp.sum(log_pi * penalties, axis=-1, keepdims=True)
    return regulariser - jnp.sum(log_pi, axis=-1, keepdims=True) * comparison.payoff

  return loss


@described
def clipped_policy_gradient(clip: float, **kl_coefficients: float) -> Loss:
  """Minus min(r A, clip(r, 1 - `clip`, 1 + `clip`) A), r = pi / snapshot of the whole response.

  A is the payoff less the price tau_m log(pi / pi_m) of the slots of `kl_coefficients`, a constant
  of the gradient (arXiv 1707.06347, eq. 7). The slot `snapshot` is the policy that sampled. At that
  policy nothing is clipped, so that the fixed point is that of the policy gradient; away from it
  the gradient is biased, and a term of it may change its sign.

  Returns:
    [B, K, J].
  """
  kl_coefficients = mixture(**kl_coefficients)

  def loss(scores, comparison):
    ratio = jnp.exp(rho(scores, 'left', {'snapshot': 1.0}))[:, :, None]
    price = sum(
      coefficient * rho(scores, 'left', {slot: 1.0})[:, :, None]
      for slot, coefficient in kl_coefficients.items()
    )
    advantage = lax.stop_gradient(comparison.payoff - price)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)

  return loss


def likelihood(scores, comparison) -> Float[Array, 'B K']:
  """-log pi(y|x) of the left responses, in nats per response."""
  del comparison
  return -jnp.sum(scores['policy'].left, axis=-1)


def cross_entropy(scores, comparison) -> Float[Array, 'B K J']:
  """-p log P - (1 - p) log(1 - P), with P = sigmoid(score) and the label p = payoff + 1/2.

  The slot `policy` holds a preference network, whose scores are one logit per pair, [B, K, J].
  """
  logit = scores['policy']
  return jax.nn.softplus(logit) - (comparison.payoff + 0.5) * logit


def payoff_to_label(payoff: Float[Array, '...']) -> Float[Array, '...']:
  """p = payoff + 1/2: the probability, or the fraction of votes, for the left response."""
  return payoff + 0.5


@described
def smoothed_label(epsilon: float) -> Callable[[Array], Array]:
  """p = 1/2 + (1 - 2 epsilon) payoff: the label if a fraction `epsilon` of votes is flipped."""
  return lambda payoff: 0.5 + (1 - 2 * epsilon) * payoff


@described
def debiased_label(epsilon: float) -> Callable[[Array], Array]:
  """p = 1/2 + payoff / (1 - 2 epsilon), whose mean over flipped votes is the true label.

  It may lie outside [0, 1].
  """
  return lambda payoff: 0.5 + payoff / (1 - 2 * epsilon)


@described
def sigmoid_label(eta: float) -> Callable[[Array], Array]:
  """p = sigmoid(eta payoff): the label of a pair whose rewards differ by the payoff."""
  return lambda payoff: jax.nn.sigmoid(eta * payoff)


# Values: (rho of whole responses, their numbers of tokens) -> what a pairwise loss compares.
Value = Callable[[Array, Array], Array]


def whole(ratio: Float[Array, 'B K'], tokens: Int[Array, '#B #K']) -> Float[Array, 'B K']:
  """rho itself."""
  del tokens
  return ratio


def per_token(ratio: Float[Array, 'B K'], tokens: Int[Array, '#B #K']) -> Float[Array, 'B K']:
  """rho divided by the number of tokens of its response."""
  return ratio / tokens


def log_odds_per_token(
  ratio: Float[Array, 'B K'], tokens: Int[Array, '#B #K']
) -> Float[Array, 'B K']:
  """log q / (1 - q), q = exp(rho / tokens): log-odds of the mean token, if there is no anchor."""
  mean = ratio / tokens
  # A probability of one would have infinite log-odds.
  mean = jnp.minimum(mean, -jnp.finfo(mean.dtype).eps)
  return mean - jnp.log(-jnp.expm1(mean))


@described
def chi_squared(cap: float) -> Value:
  """rho + exp(rho), the derivative of KL + chi^2 / 2; the exponent is cut at `cap`."""
  return lambda ratio, tokens: ratio + jnp.exp(jnp.minimum(ratio, cap))


@described
def pairwise_loss(
  link: Callable[[Array], Array],
  *,
  beta: float = 1.0,
  margin: float = 0.0,
  label: Callable[[Array], Array] = payoff_to_label,
  value: Value = whole,
  bound: float = jnp.inf,
  **anchors: float,
) -> Loss:
  """p link(margin - beta z) + (1 - p) link(margin + beta z) of every pair, z = v(y) - v(y').

  Links: softplus (DPO), square (IPO: at beta = 1 the target of z is 2 payoff margin), relu (hinge).

  Args:
    link: a function that falls as the lead of the winner grows.
    beta: scale of z.
    margin: the lead at which the link is evaluated at 0.
    label: payoff -> p.
    value: rho -> v.
    bound: beta z is cut to [-bound, bound], beyond which it has no gradient.
    anchors: slot -> weight in rho.

  Returns:
    [B, K, J].
  """

  def loss(scores, comparison):
    lead = jnp.clip(leads(scores, comparison, beta, value, anchors), -bound, bound)
    p = label(comparison.payoff)
    return p * link(margin - lead) + (1 - p) * link(margin + lead)

  return loss


def leads(scores, comparison, beta, value, anchors) -> Float[Array, 'B K J']:
  """beta (v(y) - v(y')) of every pair."""
  left, right = (
    value(rho(scores, side, anchors), jnp.sum(getattr(comparison, side).own, axis=-1))
    for side in ('left', 'right')
  )
  return beta * (left[:, :, None] - right[:, None, :])


@described
def forward_preference(beta: float, eta: float, **anchors: float) -> Loss:
  """KL(sigmoid(x) || sigmoid(t)) of two outcomes, x = beta (rho(y) - rho(y')), t = eta payoff.

  The target of x is t, as with the logistic loss on `sigmoid_label`, whose KL is the reverse of
  this one. Not convex in x.

  Returns [B, K, J].
  """

  def loss(scores, comparison):
    lead = leads(scores, comparison, beta, whole, anchors)
    target = eta * comparison.payoff
    return sum(
      jax.nn.sigmoid(sign * lead)
      * (jax.nn.log_sigmoid(sign * lead) - jax.nn.log_sigmoid(sign * target))
      for sign in (1, -1)
    )

  return loss


@described
def anchored_zero(beta: float, **anchors: float) -> Loss:
  """sigmoid(beta rho(y_l)) - sigmoid(beta rho(y_w)), mean over labels: APO-zero. [B, K, J]."""

  def loss(scores, comparison):
    left, right = (jax.nn.sigmoid(beta * rho(scores, side, anchors)) for side in ('left', 'right'))
    return -2 * comparison.payoff * (left[:, :, None] - right[:, None, :])

  return loss


@described
def anchored_down(beta: float, **anchors: float) -> Loss:
  """sigmoid(beta rho(y_w)) - sigmoid(beta (rho(y_w) - rho(y_l))), mean over labels: APO-down.

  Returns [B, K, J].
  """

  def loss(scores, comparison):
    left, right = (jax.nn.sigmoid(beta * rho(scores, side, anchors)) for side in ('left', 'right'))
    lead = leads(scores, comparison, beta, whole, anchors)
    p = payoff_to_label(comparison.payoff)
    winner = p * left[:, :, None] + (1 - p) * right[:, None, :]
    return winner - p * jax.nn.sigmoid(lead) - (1 - p) * jax.nn.sigmoid(-lead)

  return loss


@described
def regression(eta: float, **anchors: float) -> Loss:
  """(rho(y) - eta u(y))^2 of every left response, u its mean payoff: SPPO's loss. [B, K]."""

  def loss(scores, comparison):
    return jnp.square(rho(scores, 'left', anchors) - eta * mean_payoff(comparison))

  return loss


@described
def prospect(beta: float, desirable: float, undesirable: float, **anchors: float) -> Loss:
  """KTO's: w_D p sigmoid(beta (z - rho)) + w_U (1 - p) sigmoid(beta (rho - z)), p = u + 1/2.

  z = max(0, mean of rho over the mismatched responses of the batch) is not differentiated. The
  mismatched responses are the second half of the left side (`selection.add_mismatches`).

  Args:
    beta: scale of rho - z.
    desirable: w_D, the weight of winners.
    undesirable: w_U, the weight of losers.
    anchors: slot -> weight in rho.

  Returns:
    [B, K / 2].
  """

  def loss(scores, comparison):
    ratio, mismatched = jnp.split(rho(scores, 'left', anchors), 2, axis=1)
    z = lax.stop_gradient(jnp.maximum(0, jnp.mean(mismatched)))
    p = payoff_to_label(jnp.split(mean_payoff(comparison), 2, axis=1)[0])
    lead = beta * (ratio - z)
    return desirable * p * jax.nn.sigmoid(-lead) + undesirable * (1 - p) * jax.nn.sigmoid(lead)

  return loss


def winner_likelihood(scores, comparison) -> Float[Array, 'B K J']:
  """-log pi of the better response of every pair: -p log pi(y) - (1 - p) log pi(y')."""
  left, right = (jnp.sum(side, axis=-1) for side in scores['policy'])
  p = payoff_to_label(comparison.payoff)
  return -p * left[:, :, None] - (1 - p) * right[:, None, :]


def right_log_prob(scores, comparison) -> Float[Array, 'B 1 J']:
  """log pi(y'|x) of the right responses; minimising it moves probability away from them."""
  del comparison
  return jnp.sum(scores['policy'].right, axis=-1)[:, None, :]


@described
def squared_ratio(**anchors: float) -> Loss:
  """rho(y)^2 of the left responses; its gradient, 2 rho grad log pi, is that of a reverse KL.

  Returns [B, K].
  """
  return lambda scores, comparison: jnp.square(rho(scores, 'left', anchors))


@described
def forward_kl(cap: float, **anchors: float) -> Loss:
  """exp(min(-rho(y), cap)) of the left responses, mu / pi: a forward KL on samples. [B, K]."""
  return lambda scores, comparison: jnp.exp(jnp.minimum(-rho(scores, 'left', anchors), cap))


@described
def weighted_sum(*terms: tuple[float, Loss]) -> Loss:
  """The weighted sum of losses of the same shape; `terms` are pairs (weight, loss)."""
  return lambda scores, comparison: sum(weight * loss(scores, comparison) for weight, loss in terms)
