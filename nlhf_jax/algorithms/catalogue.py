"""Every algorithm, as a row: left, right, loss, references."""

from nlhf_jax.algorithms.algorithm import Algorithm, mixture
from nlhf_jax.algorithms.losses import cross_entropy, likelihood, policy_gradient
from nlhf_jax.algorithms.references import ema, frozen


def sft() -> Algorithm:
  """Supervised fine-tuning: max E log pi(y|x) over demonstrations."""
  return Algorithm(left=None, right=None, loss=likelihood, references={})


def preference_model() -> Algorithm:
  """Learns P(y > y'|x) from votes (arXiv 2312.00886, appendix G.1).

  The trained slot holds the preference network: a policy over which of two responses is better.
  """
  return Algorithm(left=None, right=None, loss=cross_entropy, references={})


def nash_md_pg(beta: float, tau: float) -> Algorithm:
  """Nash-MD-PG: y ~ pi against y' ~ pi^(1-beta) mu^beta / Z (arXiv 2312.00886, eq. 13 and 15).

  `beta` is the weight on the reference mu, in [0, 1]; `tau` prices KL(pi, mu) in win probability a
  nat. At beta > 0 the mixture, not pi, is a regularised equilibrium (at tau / (1 - beta)).
  """
  return Algorithm(
    left=mixture(policy=1.0),
    right=mixture(policy=1.0 - beta, reference=beta),
    loss=policy_gradient(tau),
    references={'reference': frozen},
  )


def self_play(tau: float) -> Algorithm:
  """y' ~ pi: Nash-MD-PG at beta = 0; its fixed point is the regularised Nash equilibrium."""
  return nash_md_pg(beta=0.0, tau=tau)


def best_response(tau: float) -> Algorithm:
  """y' ~ mu: Nash-MD-PG at beta = 1; its fixed point is proportional to mu exp(P(y > mu) / tau)."""
  return nash_md_pg(beta=1.0, tau=tau)


def nash_ema_pg(rate: float, tau: float) -> Algorithm:
  """Nash-EMA-PG: y' ~ the policy of averaged weights (arXiv 2312.00886, section 7.2).

  The printed recursion averages with theta_0; read here as the exponential moving average that the
  text describes, theta_bar <- (1 - rate) theta_bar + rate theta, so the paper's beta is 1 - rate.
  """
  return Algorithm(
    left=mixture(policy=1.0),
    right=mixture(average=1.0),
    loss=policy_gradient(tau),
    references={'reference': frozen, 'average': ema(rate)},
  )
