"""Algorithms that fit pairwise losses to samples of the current policy."""

import jax
import jax.numpy as jnp

from nlhf_jax.algorithms.algorithm import (
  BENDS_LUCK,
  FITS_LUCK,
  LEFT,
  POLICY,
  REFERENCE,
  SELECTS_LUCK,
  Algorithm,
  extragradient,
  mixture,
)
from nlhf_jax.algorithms.catalogue.offline_data import dpo, ipo
from nlhf_jax.algorithms.losses import chi_squared, pairwise_loss, right_log_prob, weighted_sum
from nlhf_jax.algorithms.references import frozen, newest
from nlhf_jax.algorithms.selection import pair_by_mean_payoff, pair_with_best
from nlhf_jax.ranges import AtLeastOne, Fraction, NonNegative, Positive


def online_dpo(beta: Positive) -> Algorithm:
  """DPO on fresh pairs y, y' ~ pi, labelled by the judge (arXiv 2402.04792)."""
  return dpo(beta)._replace(left=[POLICY], right=[POLICY], against_users=BENDS_LUCK)


def online_ipo(tau: Positive) -> Algorithm:
  """IPO on fresh pairs y, y' ~ pi: its fixed point is the regularised Nash (arXiv 2403.08635)."""
  return ipo_md(beta=0.0, tau=tau)


def chi_self_play(tau: Positive) -> Algorithm:
  """chi-PO in self-play: (phi(y) - phi(y') - (P - 1/2) / tau)^2, phi = z + log z, z = pi / mu.

  Its fixed point is the Nash of the game with the price tau (KL + chi^2 / 2), after arXiv
  2407.13399. The exponent is cut at 20.
  """
  loss = pairwise_loss(jnp.square, margin=1 / (2 * tau), value=chi_squared(20.0), reference=1.0)
  return online_ipo(tau)._replace(loss=loss, against_users=BENDS_LUCK)


def ipo_md(beta: Fraction, tau: Positive) -> Algorithm:
  """IPO on y, y' ~ pi^(1-beta) mu^beta / Z: the fixed point of Nash-MD-PG (arXiv 2403.08635)."""
  sampler = mixture(policy=1.0 - beta, reference=beta)
  reason = FITS_LUCK if beta else ''
  return ipo(tau)._replace(left=[sampler], right=[sampler], against_users=reason)


def xpo(alpha: NonNegative, beta: Positive) -> Algorithm:
  """XPO: DPO on y ~ pi, y' ~ mu, plus alpha log pi(y') (arXiv 2405.21046, algorithm 1).

  The second term explores: it moves probability to responses that are unlikely under mu.
  """
  loss = weighted_sum(
    (alpha, right_log_prob), (1.0, pairwise_loss(jax.nn.softplus, beta=beta, reference=1.0))
  )
  algorithm = dpo(beta)._replace(left=[POLICY], right=[REFERENCE], loss=loss)
  return algorithm._replace(against_users=FITS_LUCK)


def egpo(tau: Positive, temperature: Positive) -> Algorithm:
  """EGPO: (rho(y) - rho(y') - (u(y) - u(y')) / tau)^2, u against pi and then against pi_half.

  Extragradient (arXiv 2503.08942): a half step yields pi_half, in the slot `ahead`; the step with u
  against pi_half starts where the half step started. y and y' are sampled from the policy at
  `temperature`.
  """
  loss = pairwise_loss(jnp.square, margin=1 / (2 * tau), reference=1.0)
  references = {'reference': frozen, 'ahead': newest}
  broad, ahead = mixture(policy=1 / temperature), mixture(ahead=1.0)
  algorithm = Algorithm([broad] * 2, [ahead], loss, references, pair_by_mean_payoff, extragradient)
  return algorithm._replace(against_users=FITS_LUCK if temperature != 1 else '')


def oelhf(tau: Positive, candidates: AtLeastOne) -> Algorithm:
  """OELHF: (rho(y) - rho(y') - (u(y) - u(y')) / tau)^2, y ~ pi, y' the best of n ~ pi.

  The practical form of arXiv 2402.07314: y is the main agent's, y' its enhancer's, and a judge that
  is learned at the same time receives votes on these pairs. u is measured against one more sample
  y'' ~ pi, so that the fixed point is the regularised Nash; that of IPO on the payoff between y and
  y' is not.
  """
  loss = pairwise_loss(jnp.square, margin=1 / (2 * tau), reference=1.0)
  samples, references = [POLICY] * (2 + candidates), {'reference': frozen}
  algorithm = Algorithm(samples, LEFT, loss, references, pair_with_best)
  return algorithm._replace(against_users=SELECTS_LUCK)
