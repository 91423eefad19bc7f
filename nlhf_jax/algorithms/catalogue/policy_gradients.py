"""Policy-gradient algorithms: REINFORCE on the payoff with KL penalties."""

from nlhf_jax.algorithms.algorithm import POLICY, SNAPSHOT, Algorithm, mixture
from nlhf_jax.algorithms.losses import policy_gradient
from nlhf_jax.algorithms.references import ema, frozen, history, snapshot
from nlhf_jax.ranges import AtLeastOne, Fraction, NonNegative, Positive


def nash_md_pg(beta: Fraction, tau: NonNegative) -> Algorithm:
  """Nash-MD-PG: y ~ pi against y' ~ pi^(1-beta) mu^beta / Z (arXiv 2312.00886, eq. 13 and 15).

  `beta` is the weight of the reference mu in the mixture. At the fixed point with beta > 0 the
  mixture, not pi, is a regularised equilibrium, for tau / (1 - beta).
  """
  opponent = mixture(policy=1.0 - beta, reference=beta)
  return Algorithm([POLICY], [opponent], policy_gradient(reference=tau), {'reference': frozen})


def self_play(tau: NonNegative) -> Algorithm:
  """Self-play, y' ~ pi: Nash-MD-PG at beta = 0; its fixed point is the regularised Nash policy."""
  return nash_md_pg(beta=0.0, tau=tau)


def best_response(tau: NonNegative) -> Algorithm:
  """Best response to y' ~ mu: Nash-MD-PG at beta = 1; converges to mu exp(P(y > mu) / tau) / Z."""
  return nash_md_pg(beta=1.0, tau=tau)


def rlhf_pg(tau: NonNegative) -> Algorithm:
  """RLHF: max E r(y) - tau KL(pi, mu) (arXiv 2312.00886, eq. 16, with the log-ratio for the KL).

  Self-play with a reward model: in the payoff r(y) - r(y') the second response is the baseline.
  """
  return self_play(tau)._replace(payoffs=('reward',))


def nash_ema_pg(rate: Fraction, tau: NonNegative) -> Algorithm:
  """Nash-EMA-PG: y' ~ the policy with averaged weights (arXiv 2312.00886, section 7.2).

  The printed recursion averages with theta_0. This is the exponential moving average that the text
  describes, theta_bar <- (1 - rate) theta_bar + rate theta, so the paper's beta is 1 - rate.
  """
  references = {'reference': frozen, 'average': ema(rate)}
  return self_play(tau)._replace(right=[mixture(average=1.0)], references=references)


def spo(tau: NonNegative, queue: AtLeastOne, every: AtLeastOne) -> Algorithm:
  """SPO: the reward of y is its win rate against a queue of recent samples (arXiv 2401.04056).

  The queue has one sample from the policy at the end of each of the last `queue` rounds. tau = 0
  in the paper; then the average iterate converges, and the last one cycles.
  """
  past = history(queue, every)
  return Algorithm(
    [POLICY],
    [mixture(**{slot: 1.0}) for slot in past],
    policy_gradient(reference=tau),
    {'reference': frozen, **past},
  )


def mpo(tau: NonNegative, eta: Positive, every: AtLeastOne, reset: AtLeastOne) -> Algorithm:
  """MPO: max P(pi > pi_t) - tau KL(pi, magnet) - KL(pi, pi_t) / eta (arXiv 2410.16714).

  The magnet becomes the policy every `reset` updates, so that the limit is the Nash equilibrium of
  the unregularised game.
  """
  return Algorithm(
    [POLICY],
    [SNAPSHOT],
    policy_gradient(magnet=tau, snapshot=1 / eta),
    {'magnet': snapshot(reset), 'snapshot': snapshot(every)},
  )


def nash_prox(tau: NonNegative, eta: Positive, rate: Fraction) -> Algorithm:
  """Nash Prox: self-play with a second penalty, KL(pi, centre) / eta (arXiv 2505.19731).

  The centre is a moving average of past weights, as in the paper's practical form.
  """
  return self_play(tau)._replace(
    loss=policy_gradient(reference=tau, centre=1 / eta),
    references={'reference': frozen, 'centre': ema(rate)},
  )
