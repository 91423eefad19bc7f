"""Algorithms that learn from data, and rejection sampling (RSO) from the reference."""

import jax
import jax.numpy as jnp

from nlhf_jax.algorithms.algorithm import DATA, LEFT, REFERENCE, SELECTS_LUCK, Algorithm
from nlhf_jax.algorithms.losses import (
  anchored_down,
  anchored_zero,
  chi_squared,
  cross_entropy,
  debiased_label,
  forward_preference,
  likelihood,
  log_odds_per_token,
  pairwise_loss,
  per_token,
  prospect,
  sigmoid_label,
  smoothed_label,
  weighted_sum,
  winner_likelihood,
)
from nlhf_jax.algorithms.references import frozen
from nlhf_jax.algorithms.selection import add_mismatches, chain, rejection_sampling, split_pairs
from nlhf_jax.errors import UserError
from nlhf_jax.ranges import AtLeastOne, BelowHalf, NonNegative, Positive


def sft() -> Algorithm:
  """Supervised fine-tuning: max E log pi(y|x) over demonstrations (arXiv 2203.02155)."""
  return Algorithm(DATA, None, likelihood, {})


def preference_model() -> Algorithm:
  """Learns P(y > y'|x) from votes (arXiv 2312.00886, appendix G.1).

  The loss is -v log P - (1 - v) log(1 - P), for a share v of the votes. The slot `policy` holds the
  preference network.
  """
  return Algorithm(DATA, DATA, cross_entropy, {})


def reward_model() -> Algorithm:
  """Learns a Bradley-Terry reward, -log sigmoid(r(y_w) - r(y_l)): DPO without a reference.

  The slot `policy` holds the reward network, whose score of a response is r(x, y)
  (arXiv 2203.02155, eq. 1).
  """
  return Algorithm(DATA, DATA, pairwise_loss(jax.nn.softplus), {})


def dpo(beta: Positive) -> Algorithm:
  """-log sigmoid(beta (rho(y_w) - rho(y_l))) (arXiv 2305.18290, eq. 7)."""
  loss = pairwise_loss(jax.nn.softplus, beta=beta, reference=1.0)
  return Algorithm(DATA, DATA, loss, {'reference': frozen})


def cdpo(beta: Positive, epsilon: BelowHalf) -> Algorithm:
  """(1 - eps) dpo(w, l) + eps dpo(l, w): DPO on labels flipped with probability `epsilon`.

  (E. Mitchell, "A note on DPO with noisy preferences", 2023.)
  """
  loss = pairwise_loss(jax.nn.softplus, beta=beta, label=smoothed_label(epsilon), reference=1.0)
  return dpo(beta)._replace(loss=loss)


def robust_dpo(beta: Positive, epsilon: BelowHalf) -> Algorithm:
  """[(1 - eps) dpo(w, l) - eps dpo(l, w)] / (1 - 2 eps) (arXiv 2403.00409, eq. 12).

  Unbiased if labels are flipped with probability `epsilon`, below 1/2.
  """
  loss = pairwise_loss(jax.nn.softplus, beta=beta, label=debiased_label(epsilon), reference=1.0)
  return dpo(beta)._replace(loss=loss)


def ipo(tau: Positive) -> Algorithm:
  """(rho(y_w) - rho(y_l) - 1 / (2 tau))^2, sums over tokens (arXiv 2310.12036, eq. 17).

  Its minimum is mu exp(P(y > mu') / tau) / Z, where pairs are sampled from mu'.
  """
  loss = pairwise_loss(jnp.square, margin=1 / (2 * tau), reference=1.0)
  return Algorithm(DATA, DATA, loss, {'reference': frozen})


def ipo_per_token(tau: Positive) -> Algorithm:
  """(rho(y_w) / |y_w| - rho(y_l) / |y_l| - 1 / (2 tau))^2: IPO on means over tokens.

  A variant of IPO (arXiv 2310.12036), as in its authors' experiments.
  """
  loss = pairwise_loss(jnp.square, margin=1 / (2 * tau), value=per_token, reference=1.0)
  return ipo(tau)._replace(loss=loss)


def chi_po(beta: Positive, r_max: Positive) -> Algorithm:
  """chi-PO: -log sigmoid(clip(beta (phi(y_w) - phi(y_l)))), phi = z + log z, z = pi / mu.

  (arXiv 2407.13399, algorithm 1.) DPO for the price KL + chi^2 / 2, so that responses which the
  data do not cover gain less. The clip is to 2 `r_max`; beyond it the loss is flat, and a bound
  below the leads that the data teach moves the minimum. Only gains cost more: where pi is far below
  mu, phi is log z, as in DPO. The exponent is cut at 20.
  """
  loss = pairwise_loss(
    jax.nn.softplus, beta=beta, value=chi_squared(20.0), bound=2 * r_max, reference=1.0
  )
  return dpo(beta)._replace(loss=loss)


def rpo_squared(beta: Positive, eta: Positive) -> Algorithm:
  """RPO, squared: (beta (rho(y_w) - rho(y_l)) - t)^2, t = eta payoff (arXiv 2502.00203).

  The payoff of a pair is in the place of the paper's difference of rewards, in all three forms.
  """
  loss = pairwise_loss(jnp.square, beta=beta, margin=eta / 2, reference=1.0)
  return dpo(beta)._replace(loss=loss)


def rpo_backward(beta: Positive, eta: Positive) -> Algorithm:
  """RPO with the backward KL: DPO on the label sigmoid(eta payoff) (arXiv 2502.00203)."""
  loss = pairwise_loss(jax.nn.softplus, beta=beta, label=sigmoid_label(eta), reference=1.0)
  return dpo(beta)._replace(loss=loss)


def rpo_forward(beta: Positive, eta: Positive) -> Algorithm:
  """RPO with the forward KL, KL(sigmoid(beta (rho - rho')) || sigmoid(eta payoff)) (2502.00203).

  EXO on pairs (arXiv 2402.00856, eq. 16) with label smoothing e is this, at
  eta = 2 log((1 - e) / e), up to a constant. The loss is not convex.
  """
  return dpo(beta)._replace(loss=forward_preference(beta, eta, reference=1.0))


def apo_zero(beta: Positive) -> Algorithm:
  """APO-zero: -sigmoid(beta rho(y_w)) + sigmoid(beta rho(y_l)) (arXiv 2408.06266, eq. 7).

  It has no fixed point in the interior: the policy ends at one response, slowly, since the sigmoids
  saturate.
  """
  return dpo(beta)._replace(loss=anchored_zero(beta, reference=1.0))


def apo_down(beta: Positive) -> Algorithm:
  """APO-down: sigmoid(beta rho(y_w)) - sigmoid(beta (rho(y_w) - rho(y_l))) (2408.06266, eq. 8).

  Its stationary point in the interior is a maximum of the loss: the policy ends at one response.
  """
  return dpo(beta)._replace(loss=anchored_down(beta, reference=1.0))


def orpo(weight: Positive) -> Algorithm:
  """ORPO: -log pi(y_w) - weight log sigmoid(log-odds of y_w - log-odds of y_l) (2403.07691).

  Odds are those of the mean token, q / (1 - q), q = exp(log pi(y) / |y|). The likelihood is of the
  response, in nats; the released code takes its mean over the tokens of prompt and response. There
  is no reference.
  """
  odds = pairwise_loss(jax.nn.softplus, value=log_odds_per_token)
  return Algorithm(DATA, DATA, weighted_sum((1.0, winner_likelihood), (weight, odds)), {})


def cpo(beta: Positive, weight: NonNegative) -> Algorithm:
  """CPO: -log sigmoid(beta log pi(y_w) / pi(y_l)) - weight log pi(y_w) (2401.08417, eq. 3).

  There is no reference.
  """
  pairs = pairwise_loss(jax.nn.softplus, beta=beta)
  return Algorithm(DATA, DATA, weighted_sum((1.0, pairs), (weight, winner_likelihood)), {})


def slic(delta: NonNegative, weight: NonNegative) -> Algorithm:
  """max(0, delta - log pi(y_w) + log pi(y_l)) - weight log pi(y_w) (arXiv 2305.10425, eq. 2)."""
  hinge = pairwise_loss(jax.nn.relu, margin=delta)
  return Algorithm(DATA, DATA, weighted_sum((1.0, hinge), (weight, winner_likelihood)), {})


def kto(beta: Positive, desirable: Positive, undesirable: Positive) -> Algorithm:
  """KTO: w_D (1 - sigmoid(beta (rho - z))) of winners, w_U (1 - sigmoid(beta (z - rho))) of losers.

  z is the KL to the reference, estimated on responses to other prompts (arXiv 2402.01306, eq. 8).
  Winners are also responses that data without pairs call good, and losers those that they call bad.
  """
  loss = prospect(beta, desirable, undesirable, reference=1.0)
  select = chain(split_pairs, add_mismatches)
  references = {'reference': frozen}
  return Algorithm(DATA, DATA, loss, references, select, per_example=False, unpaired=True)


def simpo(beta: Positive, gamma: NonNegative) -> Algorithm:
  """-log sigmoid(beta (log pi(y_w) / |y_w| - log pi(y_l) / |y_l|) - gamma) (arXiv 2405.14734)."""
  loss = pairwise_loss(jax.nn.softplus, beta=beta, margin=gamma, value=per_token)
  return Algorithm(DATA, DATA, loss, {})


def rso(beta: Positive, gamma: Positive, candidates: AtLeastOne, keep: AtLeastOne) -> Algorithm:
  """RSO: DPO with beta = `gamma` on samples from mu exp(r / beta) / Z (arXiv 2309.06657).

  Rejection sampling accepts `keep` of the `candidates`; their distribution is accurate if `keep` is
  much smaller. r is the log-odds against one more sample. This is the paper's sigmoid-norm on
  rso-sample-rank.

  Raises:
    UserError: if `keep` is below 2, or above `candidates`.
  """
  if not 2 <= keep <= candidates:
    raise UserError(f'keep={keep} must be at least 2, and at most candidates={candidates}.')
  return Algorithm(
    [REFERENCE] * (1 + candidates),
    LEFT,
    pairwise_loss(jax.nn.softplus, beta=gamma, reference=1.0),
    {'reference': frozen},
    rejection_sampling(beta, keep),
    payoffs=('log_odds',),
    against_users=SELECTS_LUCK,
  )


def rso_hinge(
  beta: Positive, gamma: Positive, candidates: AtLeastOne, keep: AtLeastOne
) -> Algorithm:
  """RSO with max(0, 1 - gamma (rho(y_w) - rho(y_l))), its hinge-norm (arXiv 2309.06657)."""
  loss = pairwise_loss(jax.nn.relu, beta=gamma, margin=1.0, reference=1.0)
  return rso(beta, gamma, candidates, keep)._replace(loss=loss)
