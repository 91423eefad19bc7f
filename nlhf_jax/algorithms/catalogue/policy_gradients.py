"""Policy-gradient algorithms: REINFORCE on the payoff with KL penalties."""

from nlhf_jax.algorithms.algorithm import (
  BENDS_LUCK,
  LEFT,
  POLICY,
  REFERENCE,
  SELECTS_LUCK,
  SNAPSHOT,
  Algorithm,
  mixture,
)
from nlhf_jax.algorithms.losses import clipped_policy_gradient, policy_gradient
from nlhf_jax.algorithms.references import ema, frozen, history, snapshot
from nlhf_jax.algorithms.selection import (
  choose_one,
  leave_out_self,
  map_payoff,
  standardise,
  weigh_by_strength,
)
from nlhf_jax.games.payoff_maps import PayoffMap
from nlhf_jax.ranges import AtLeastOne, AtLeastTwo, Fraction, NonNegative, Positive


def nash_md_pg(beta: Fraction, tau: NonNegative) -> Algorithm:
  """Nash-MD-PG: y ~ pi against y' ~ pi^(1-beta) mu^beta / Z (arXiv 2312.00886, eq. 13 and 15).

  `beta` is the weight of the reference mu in the mixture. At the fixed point with beta > 0, a
  mixture of whole responses would be a regularised equilibrium, for tau / (1 - beta); pi is not.
  The mixture of every token, which is sampled, is one for responses of one token, and nearly one
  for longer ones: in a game of two tokens its exploitability is 2e-7 at tau = .1, and 1e-5 at .02.
  """
  opponent = mixture(policy=1.0 - beta, reference=beta)
  return Algorithm([POLICY], [opponent], policy_gradient(reference=tau), {'reference': frozen})


def self_play(tau: NonNegative) -> Algorithm:
  """Self-play, y' ~ pi: Nash-MD-PG at beta = 0 (arXiv 2312.00886, section 7).

  Its fixed point is the regularised Nash policy.
  """
  return nash_md_pg(beta=0.0, tau=tau)


def best_response(tau: NonNegative) -> Algorithm:
  """Best response to y' ~ mu: Nash-MD-PG at beta = 1 (arXiv 2312.00886, section 7).

  It converges to mu exp(P(y > mu) / tau) / Z.
  """
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

  The payoff is the mean of P(y > y_j) - 1/2 over the queue, which has one sample from the policy at
  the end of each of the last `queue` rounds. tau = 0 in the paper; then the average iterate
  converges, and the last one cycles.
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


def nash_md_group(
  beta: Fraction, tau: NonNegative, responses: AtLeastOne, opponents: AtLeastOne
) -> Algorithm:
  """Nash-MD-PG with the mean payoff of K responses against J opponents; unbiased for every K, J.

  The payoff of y_k is the mean of P(y_k > y'_j) - 1/2 over j: a variant of Nash-MD-PG
  (arXiv 2312.00886). The variance is that of K and of J samples; more opponents help more than more
  responses.
  """
  return nash_md_pg(beta, tau)._replace(
    left=[POLICY] * responses, right=[mixture(policy=1.0 - beta, reference=beta)] * opponents
  )


def self_play_group(tau: NonNegative, samples: AtLeastTwo) -> Algorithm:
  """Self-play of K samples of the policy, all against all; its fixed point is self-play's.

  The payoff of y_k is the mean of P(y_k > y_j) - 1/2 over j != k: a variant of self-play
  (arXiv 2312.00886). The opponents are the baseline; a leave-one-out baseline on top of them would
  divide tau by K / (K - 1).
  """
  return self_play(tau)._replace(left=[POLICY] * samples, right=LEFT, select=leave_out_self)


def standardised_self_play(tau: NonNegative, samples: AtLeastTwo) -> Algorithm:
  """Self-play of K samples with GRPO's advantages, (u - mean) / (s + 1e-4) (arXiv 2402.03300).

  Another game than self-play: with K = 2 the payoff is sign(P - 1/2) / sqrt 2 whatever the margin,
  so that it ends at the regularised Nash of the *signs*, at tau sqrt 2; as K grows, dividing by an
  ever smaller spread lets the KL penalty vanish near the equilibrium. KL(pi, mu) is added as usual,
  not GRPO's forward KL.
  """
  return self_play(tau)._replace(
    left=[POLICY] * samples,
    right=LEFT,
    select=standardise(1e-4),
    payoffs=('probability', 'reward'),
    against_users=BENDS_LUCK if samples > 2 else '',
  )


def clipped_self_play(tau: NonNegative, clip: Positive, every: AtLeastOne) -> Algorithm:
  """Self-play of pi_t with clipped ratios r = pi / pi_t to it (PPO, arXiv 1707.06347, eq. 7).

  It maximises min(r A, clip(r, 1 - `clip`, 1 + `clip`) A), with A = P(y > y') - 1/2 less
  tau log(pi / mu). `every` updates follow from samples of one policy pi_t, both sides. Its fixed
  point is self-play's for every `clip`, since nothing is clipped at pi_t; the path to it is biased:
  of a response whose ratio has left 1 +- `clip` the gradient vanishes. Many updates a round
  approach undamped best replies, which need not converge; `mpo` and `nash_prox` penalise the
  distance to pi_t instead.
  """
  return Algorithm(
    [SNAPSHOT],
    [SNAPSHOT],
    clipped_policy_gradient(clip, reference=tau),
    {'reference': frozen, 'snapshot': snapshot(every)},
  )


def psi_self_play(tau: NonNegative, psi: PayoffMap) -> Algorithm:
  """Self-play on the odd part of psi(P): (psi(P) - psi(1 - P)) / 2 (after arXiv 2505.20627).

  `psi` is identity, log_odds, sign, square or log. Any odd map that keeps the sign of P - 1/2
  selects a Condorcet winner as tau goes to 0; a tau is in units of the mapped payoff. The map acts
  on the probability of a pair: on votes all maps would be the same.
  """
  return self_play(tau)._replace(select=map_payoff(psi), payoffs=('log_odds',))


def nash_rejection(tau: Positive, responses: AtLeastOne, candidates: AtLeastOne) -> Algorithm:
  """Nash rejection sampling, weighted: y ~ pi against the best response to pi (2503.10990).

  The best response, mu exp(P(y' > pi) / tau) / Z, is estimated by weights on `candidates` responses
  of mu, in place of rejecting them one by one; P(y' > pi) by the mean over `responses` of pi. Both
  are biased: of order 1 / candidates, and 1 / responses. A step descends the regularised
  exploitability, where self-play turns around the equilibrium.
  """
  return self_play(tau)._replace(
    left=[POLICY] * responses,
    right=[REFERENCE] * candidates,
    select=weigh_by_strength(tau),
    against_users=SELECTS_LUCK,
  )


def best_of_k(tau: NonNegative, k: AtLeastOne) -> Algorithm:
  """The alignment game of k samples against one, of which the user chooses the best (2601.08777).

  The payoff of y_i is its chance to be chosen, exp r(y_i) / sum_j exp r(y_j), less 1 / (k + 1).
  Each of k + 1 samples of the policy is in turn the single opponent. Needs a judge of choices among
  k + 1, for which a reward model stands, by Plackett and Luce's softmax; pairwise preferences do
  not determine such choices. At its symmetric equilibrium k samples win against any opponent with
  probability k / (k + 1).
  """
  return self_play(tau)._replace(
    left=[POLICY] * (k + 1), right=LEFT, select=choose_one, payoffs=('reward',)
  )
