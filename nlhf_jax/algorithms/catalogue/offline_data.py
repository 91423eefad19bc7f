"""Algorithms that learn from data, and rejection sampling (RSO) from the reference."""

import jax
import jax.numpy as jnp

from nlhf_jax.algorithms.algorithm import DATA, LEFT, REFERENCE, Algorithm
from nlhf_jax.algorithms.losses import (
  cross_entropy,
  debiased_label,
  likelihood,
  pairwise_loss,
  prospect,
  smoothed_label,
  weighted_sum,
  winner_likelihood,
)
from nlhf_jax.algorithms.references import frozen
from nlhf_jax.algorithms.selection import add_mismatches, chain, rejection_sampling, split_pairs
from nlhf_jax.errors import UserError
from nlhf_jax.ranges import AtLeastOne, BelowHalf, NonNegative, Positive


def sft() -> Algorithm:
  """Supervised fine-tuning: max E log pi(y|x) over demonstrations."""
  return Algorithm(DATA, None, likelihood, {})


def preference_model() -> Algorithm:
  """Learns P(y > y'|x) from votes (arXiv 2312.00886, appendix G.1).

  The slot `policy` holds the preference network.
  """
  return Algorithm(DATA, DATA, cross_entropy, {})


def reward_model() -> Algorithm:
  """Learns a Bradley-Terry reward, -log sigmoid(r(y_w) - r(y_l)): DPO without a reference.

  The slot `policy` holds the reward network, whose score of a response is r(x, y).
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
  """IPO with every rho divided by the length of its response, as in its authors' experiments."""
  loss = pairwise_loss(jnp.square, margin=1 / (2 * tau), per_token=True, reference=1.0)
  return ipo(tau)._replace(loss=loss)


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
  loss = pairwise_loss(jax.nn.softplus, beta=beta, margin=gamma, per_token=True)
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
  )


def rso_hinge(
  beta: Positive, gamma: Positive, candidates: AtLeastOne, keep: AtLeastOne
) -> Algorithm:
  """RSO with max(0, 1 - gamma (rho(y_w) - rho(y_l))), the paper's hinge-norm."""
  loss = pairwise_loss(jax.nn.relu, beta=gamma, margin=1.0, reference=1.0)
  return rso(beta, gamma, candidates, keep)._replace(loss=loss)
