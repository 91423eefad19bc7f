"""Every algorithm, as a row: left, right, loss, references, and where needed select and step.

Letters are those of the papers: `tau` is the price of leaving the reference mu, in win probability
a nat; `beta` scales a log-ratio; `eta` is as each row says. `every` is the length of a round in
updates: pi_t, the policy at the start of the round, is the slot `snapshot`.
"""

import jax
import jax.numpy as jnp

from nlhf_jax.algorithms.algorithm import DATA, LEFT, Algorithm, extragradient, mixture
from nlhf_jax.algorithms.losses import (
  cross_entropy,
  debiased_label,
  forward_kl,
  likelihood,
  pairwise_loss,
  policy_gradient,
  prospect,
  regression,
  right_log_prob,
  smoothed_label,
  squared_ratio,
  weighted_sum,
  winner_likelihood,
)
from nlhf_jax.algorithms.references import ema, frozen, history, newest, snapshot
from nlhf_jax.algorithms.selection import (
  add_mismatches,
  best_against_worst,
  best_and_worst,
  chain,
  pair_by_mean_payoff,
  pair_with_best,
  payoff_to_log_odds,
  rejection_sampling,
  split_pairs,
  subtract_constant,
  subtract_log_partition,
)
from nlhf_jax.errors import UserError

POLICY, REFERENCE, SNAPSHOT = (
  mixture(**{slot: 1.0}) for slot in ('policy', 'reference', 'snapshot')
)

# --- From data ---


def sft() -> Algorithm:
  """Supervised fine-tuning: max E log pi(y|x) over demonstrations."""
  return Algorithm(DATA, None, likelihood, {})


def preference_model() -> Algorithm:
  """Learns P(y > y'|x) from votes (arXiv 2312.00886, appendix G.1).

  The trained slot holds the preference network: a policy over which of two responses is better.
  """
  return Algorithm(DATA, DATA, cross_entropy, {})


def reward_model() -> Algorithm:
  """Learns a Bradley-Terry reward, -log sigmoid(r(y_w) - r(y_l)): DPO without a reference.

  The trained slot holds the reward network, whose score of a response is r(x, y).
  """
  return Algorithm(DATA, DATA, pairwise_loss(jax.nn.softplus), {})


def dpo(beta: float) -> Algorithm:
  """-log sigmoid(beta (rho(y_w) - rho(y_l))) (arXiv 2305.18290, eq. 7)."""
  loss = pairwise_loss(jax.nn.softplus, beta=beta, reference=1.0)
  return Algorithm(DATA, DATA, loss, {'reference': frozen})


def cdpo(beta: float, epsilon: float) -> Algorithm:
  """(1 - eps) dpo(w, l) + eps dpo(l, w): DPO on labels of which a share `epsilon` may be flipped.

  (E. Mitchell, "A note on DPO with noisy preferences", 2023.)
  """
  loss = pairwise_loss(jax.nn.softplus, beta=beta, label=smoothed_label(epsilon), reference=1.0)
  return dpo(beta)._replace(loss=loss)


def robust_dpo(beta: float, epsilon: float) -> Algorithm:
  """[(1 - eps) dpo(w, l) - eps dpo(l, w)] / (1 - 2 eps) (arXiv 2403.00409, eq. 12).

  Unbiased where a share `epsilon`, below 1/2, of the labels was flipped.
  """
  loss = pairwise_loss(jax.nn.softplus, beta=beta, label=debiased_label(epsilon), reference=1.0)
  return dpo(beta)._replace(loss=loss)


def ipo(tau: float) -> Algorithm:
  """(rho(y_w) - rho(y_l) - 1 / (2 tau))^2, sums over tokens (arXiv 2310.12036, eq. 17).

  Its rest is mu exp(P(y > mu') / tau), where pairs are drawn from mu'.
  """
  loss = pairwise_loss(jnp.square, margin=1 / (2 * tau), reference=1.0)
  return Algorithm(DATA, DATA, loss, {'reference': frozen})


def ipo_per_token(tau: float) -> Algorithm:
  """IPO with every rho divided by the tokens of its response, as its authors published results."""
  loss = pairwise_loss(jnp.square, margin=1 / (2 * tau), per_token=True, reference=1.0)
  return ipo(tau)._replace(loss=loss)


def slic(delta: float, weight: float) -> Algorithm:
  """max(0, delta - log pi(y_w) + log pi(y_l)) - weight log pi(y_w) (arXiv 2305.10425, eq. 2)."""
  hinge = pairwise_loss(jax.nn.relu, margin=delta)
  return Algorithm(DATA, DATA, weighted_sum((1.0, hinge), (weight, winner_likelihood)), {})


def kto(beta: float, desirable: float, undesirable: float) -> Algorithm:
  """w_D (1 - sigmoid(beta (rho - z))) of winners, w_U (1 - sigmoid(beta (z - rho))) of losers.

  z is the KL to the reference, estimated on responses to other prompts (arXiv 2402.01306, eq. 8).
  """
  loss = prospect(beta, desirable, undesirable, reference=1.0)
  select = chain(split_pairs, add_mismatches)
  return Algorithm(DATA, DATA, loss, {'reference': frozen}, select)


def simpo(beta: float, gamma: float) -> Algorithm:
  """-log sigmoid(beta (log pi(y_w) / |y_w| - log pi(y_l) / |y_l|) - gamma) (arXiv 2405.14734)."""
  loss = pairwise_loss(jax.nn.softplus, beta=beta, margin=gamma, per_token=True)
  return Algorithm(DATA, DATA, loss, {})


def rso(beta: float, gamma: float, candidates: int, keep: int) -> Algorithm:
  """DPO at `gamma` on samples distributed as mu exp(r / beta) / Z (arXiv 2309.06657).

  Nearly so where `keep` is far below `candidates`, of which it is accepted; r is the log-odds
  against one more. This is the paper's sigmoid-norm on rso-sample-rank.

  Raises:
    UserError: if there are not so many candidates, or those kept make no pair.
  """
  if not 2 <= keep <= candidates:
    raise UserError(f'keep={keep} must be at least 2, and at most candidates={candidates}.')
  return Algorithm(
    [REFERENCE] * (1 + candidates),
    LEFT,
    pairwise_loss(jax.nn.softplus, beta=gamma, reference=1.0),
    {'reference': frozen},
    rejection_sampling(beta, keep),
  )


def rso_hinge(beta: float, gamma: float, candidates: int, keep: int) -> Algorithm:
  """RSO with max(0, 1 - gamma (rho(y_w) - rho(y_l))), the paper's hinge-norm."""
  loss = pairwise_loss(jax.nn.relu, beta=gamma, margin=1.0, reference=1.0)
  return rso(beta, gamma, candidates, keep)._replace(loss=loss)


# --- Policy gradients ---


def nash_md_pg(beta: float, tau: float) -> Algorithm:
  """Nash-MD-PG: y ~ pi against y' ~ pi^(1-beta) mu^beta / Z (arXiv 2312.00886, eq. 13 and 15).

  `beta` is the weight on the reference mu, in [0, 1]. At beta > 0 the mixture, not pi, is a
  regularised equilibrium (at tau / (1 - beta)).
  """
  opponent = mixture(policy=1.0 - beta, reference=beta)
  return Algorithm([POLICY], [opponent], policy_gradient(reference=tau), {'reference': frozen})


def self_play(tau: float) -> Algorithm:
  """Self-play, y' ~ pi: Nash-MD-PG at beta = 0; rests at the regularised Nash equilibrium."""
  return nash_md_pg(beta=0.0, tau=tau)


def best_response(tau: float) -> Algorithm:
  """Best response to y' ~ mu: Nash-MD-PG at beta = 1; rests at mu exp(P(y > mu) / tau) / Z."""
  return nash_md_pg(beta=1.0, tau=tau)


def rlhf_pg(tau: float) -> Algorithm:
  """RLHF: max E r(y) - tau KL(pi, mu) (arXiv 2312.00886, eq. 16, with the log-ratio for the KL).

  Self-play judged by a reward model: the payoff r(y) - r(y') makes a second response the baseline.
  """
  return self_play(tau)


def nash_ema_pg(rate: float, tau: float) -> Algorithm:
  """Nash-EMA-PG: y' ~ the policy of averaged weights (arXiv 2312.00886, section 7.2).

  The printed recursion averages with theta_0; read here as the exponential moving average that the
  text describes, theta_bar <- (1 - rate) theta_bar + rate theta, so the paper's beta is 1 - rate.
  """
  references = {'reference': frozen, 'average': ema(rate)}
  return self_play(tau)._replace(right=[mixture(average=1.0)], references=references)


def spo(tau: float, queue: int, every: int) -> Algorithm:
  """SPO: the reward of y is its win rate against a queue of recent samples (arXiv 2401.04056).

  One sample from the policy at the end of each of the last `queue` rounds; tau = 0 in the paper,
  where the average iterate converges and the last one cycles.
  """
  past = history(queue, every)
  return Algorithm(
    [POLICY],
    [mixture(**{slot: 1.0}) for slot in past],
    policy_gradient(reference=tau),
    {'reference': frozen, **past},
  )


def mpo(tau: float, eta: float, every: int, reset: int) -> Algorithm:
  """MPO: max P(pi > pi_t) - tau KL(pi, magnet) - KL(pi, pi_t) / eta (arXiv 2410.16714).

  The magnet becomes the policy every `reset` updates; its limit is the Nash of the game itself.
  """
  return Algorithm(
    [POLICY],
    [SNAPSHOT],
    policy_gradient(magnet=tau, snapshot=1 / eta),
    {'magnet': snapshot(reset), 'snapshot': snapshot(every)},
  )


def nash_prox(tau: float, eta: float, rate: float) -> Algorithm:
  """Nash Prox: self-play with a second price, KL(pi, centre) / eta (arXiv 2505.19731).

  The centre is an average of past weights, as in the paper's practical form.
  """
  return self_play(tau)._replace(
    loss=policy_gradient(reference=tau, centre=1 / eta),
    references={'reference': frozen, 'centre': ema(rate)},
  )


# --- In rounds: pi_t samples, and the policy is fitted to what it should become ---


def spin(beta: float, every: int) -> Algorithm:
  """-log sigmoid(beta (rho_t(y) - rho_t(y'))), y a demonstration, y' ~ pi_t (arXiv 2401.01335)."""
  loss = pairwise_loss(jax.nn.softplus, beta=beta, snapshot=1.0)
  return Algorithm(DATA, [SNAPSHOT], loss, {'snapshot': snapshot(every)})


def sppo(eta: float, samples: int, every: int, log_z: float) -> Algorithm:
  """(rho_t(y) - eta (P^(y > pi_t) - log_z))^2, y best and worst of K ~ pi_t (arXiv 2405.00675).

  P^ is the mean over all K samples, y among them; `log_z`, in units of eta, is 1/2 in the paper.
  """
  return Algorithm(
    [SNAPSHOT] * samples,
    LEFT,
    regression(eta, snapshot=1.0),
    {'snapshot': snapshot(every)},
    chain(subtract_constant(log_z - 0.5), best_and_worst),
  )


def sppo_estimated(eta: float, samples: int, every: int) -> Algorithm:
  """SPPO with log Z estimated on the K samples in place of the constant."""
  select = chain(subtract_log_partition(eta), best_and_worst)
  return sppo(eta, samples, every, log_z=0.5)._replace(select=select)


def sppo_pair(eta: float, samples: int, every: int) -> Algorithm:
  """SPPO with P(y_w > y_l) for P^ of the winner, and 1 - P(y_w > y_l) for the loser.

  `sppo_single` of the released code, but for its factor 1/2.
  """
  select = chain(best_against_worst, split_pairs)
  return sppo(eta, samples, every, log_z=0.5)._replace(select=select)


def gpo(eta: float, samples: int, every: int) -> Algorithm:
  """GPO: SPPO on scores, log-odds in place of probabilities (arXiv 2410.02197).

  The paper's score is a tenth of the log-odds, so its eta is ten times this one.
  """
  select = chain(payoff_to_log_odds, best_and_worst)
  return sppo(eta, samples, every, log_z=0.5)._replace(select=select)


def rspo(eta: float, samples: int, every: int, forward: float, reverse: float) -> Algorithm:
  """RSPO: SPPO + forward E exp(min(-rho, 10)) + reverse E rho^2, rho to mu (arXiv 2503.00030).

  All are means over the two responses: `forward` and `reverse` are twice the released code's.
  """
  loss = weighted_sum(
    (1.0, regression(eta, snapshot=1.0)),
    (forward, forward_kl(10.0, reference=1.0)),
    (reverse, squared_ratio(reference=1.0)),
  )
  references = {'reference': frozen, 'snapshot': snapshot(every)}
  return sppo(eta, samples, every, log_z=0.5)._replace(loss=loss, references=references)


def rebel(eta: float, every: int) -> Algorithm:
  """(rho_t(y_1) - rho_t(y_2) - eta (u(y_1) - u(y_2)))^2 (arXiv 2404.16767, eq. 4, times eta^2).

  u is the win rate against a third sample of pi_t; under a reward model it is the reward.
  """
  loss = pairwise_loss(jnp.square, margin=eta / 2, snapshot=1.0)
  references = {'snapshot': snapshot(every)}
  return Algorithm([SNAPSHOT] * 2, [SNAPSHOT], loss, references, pair_by_mean_payoff)


def dno(eta: float, every: int) -> Algorithm:
  """Cross-entropy of sigmoid(eta (rho_t(y_1) - rho_t(y_2))) to sigmoid(u(y_1) - u(y_2)).

  (arXiv 2404.03715, algorithm 1.) A step is 1 / eta. u is estimated on one sample, and the sigmoid
  of an estimate is a little closer to 1/2 in the mean than that of the truth.
  """
  loss = pairwise_loss(jax.nn.softplus, beta=eta, label=jax.nn.sigmoid, snapshot=1.0)
  return rebel(1 / eta, every)._replace(loss=loss)


def inpo(tau: float, eta: float, every: int) -> Algorithm:
  """(h_t(y_w) - h_t(y_l) - 1 / (2 eta))^2, y, y' ~ pi_t (arXiv 2407.00617, eq. 11).

  h_t anchors at mu^(tau/eta) pi_t^(1-tau/eta): a step of 1 / eta, with eta at least tau.
  """
  anchors = mixture(reference=tau / eta, snapshot=1 - tau / eta)
  loss = pairwise_loss(jnp.square, margin=1 / (2 * eta), **anchors)
  references = {'reference': frozen, 'snapshot': snapshot(every)}
  return Algorithm([SNAPSHOT], [SNAPSHOT], loss, references)


def comal(tau: float, eta: float, every: int, reset: int) -> Algorithm:
  """COMAL: INPO around a magnet that becomes the policy every `reset` updates (arXiv 2410.23223).

  Its limit is the Nash of the game itself, if the rounds between two resets come near theirs.
  """
  anchors = mixture(magnet=tau / eta, snapshot=1 - tau / eta)
  return inpo(tau, eta, every)._replace(
    loss=pairwise_loss(jnp.square, margin=1 / (2 * eta), **anchors),
    references={'magnet': snapshot(reset), 'snapshot': snapshot(every)},
  )


def mnpo(ratio: float, eta: float, every: int, rounds: int) -> Algorithm:
  """TD-MNPO: (rho(y_w) - rho(y_l) - 1 / (2 eta))^2 around mu and past policies (arXiv 2509.23102).

  The anchors are mu, with weight `ratio`, and pi_t, pi_{t-1}, ..., `rounds` of them, alike.
  """
  past = history(rounds, every)
  anchors = mixture(reference=ratio, **dict.fromkeys(past, (1 - ratio) / rounds))
  newest = [mixture(history_1=1.0)]
  loss = pairwise_loss(jnp.square, margin=1 / (2 * eta), **anchors)
  return Algorithm(newest, newest, loss, {'reference': frozen, **past})


def onpo(eta: float, every: int) -> Algorithm:
  """(log pi / pi'_t of y_w, less that of y_l, - eta / 2)^2, y, y' ~ pi_t (arXiv 2502.16852).

  Optimistic: a round solves it twice, around pi'_t for pi'_{t+1} and around that for pi_{t+1}. The
  slot `centre` holds pi'; each solve is `every` updates.
  """
  loss = pairwise_loss(jnp.square, margin=eta / 2, centre=1.0)
  references = {'centre': snapshot(2 * every, first=every), 'snapshot': snapshot(2 * every)}
  return Algorithm([SNAPSHOT], [SNAPSHOT], loss, references)


# --- Online: the policy is fitted to its own samples ---


def online_dpo(beta: float) -> Algorithm:
  """DPO on fresh pairs y, y' ~ pi, labelled by the judge (arXiv 2402.04792)."""
  return dpo(beta)._replace(left=[POLICY], right=[POLICY])


def online_ipo(tau: float) -> Algorithm:
  """IPO on fresh pairs y, y' ~ pi: rests at the regularised Nash (arXiv 2403.08635)."""
  return ipo_md(beta=0.0, tau=tau)


def ipo_md(beta: float, tau: float) -> Algorithm:
  """IPO on pairs from pi^(1-beta) mu^beta / Z: rests where Nash-MD-PG does (arXiv 2403.08635)."""
  player = mixture(policy=1.0 - beta, reference=beta)
  return ipo(tau)._replace(left=[player], right=[player])


def xpo(alpha: float, beta: float) -> Algorithm:
  """alpha log pi(y') + DPO on y ~ pi, y' ~ mu: optimism for what mu would not say.

  (arXiv 2405.21046, algorithm 1.)
  """
  loss = weighted_sum(
    (alpha, right_log_prob), (1.0, pairwise_loss(jax.nn.softplus, beta=beta, reference=1.0))
  )
  return dpo(beta)._replace(left=[POLICY], right=[REFERENCE], loss=loss)


def egpo(tau: float, temperature: float) -> Algorithm:
  """(rho(y) - rho(y') - (u(y) - u(y')) / tau)^2, y, y' broad, against pi and then against pi_half.

  Extragradient (arXiv 2503.08942): a half step gives pi_half, the slot `ahead`; the step against it
  is taken from where the half step began. y, y' come from the policy at a `temperature` above 1.
  """
  loss = pairwise_loss(jnp.square, margin=1 / (2 * tau), reference=1.0)
  references = {'reference': frozen, 'ahead': newest}
  broad, ahead = mixture(policy=1 / temperature), mixture(ahead=1.0)
  return Algorithm([broad] * 2, [ahead], loss, references, pair_by_mean_payoff, extragradient)


def oelhf(tau: float, candidates: int) -> Algorithm:
  """(rho(y) - rho(y') - (u(y) - u(y')) / tau)^2, y ~ pi, y' the best of n ~ pi (arXiv 2402.07314).

  The practical form: y is the main agent's, y' its enhancer's, and votes on such pairs are what the
  judge learns from. u is against one more y'' ~ pi, so that this rests at the regularised Nash;
  IPO on the payoff between y and y' would not.
  """
  loss = pairwise_loss(jnp.square, margin=1 / (2 * tau), reference=1.0)
  return Algorithm([POLICY] * (2 + candidates), LEFT, loss, {'reference': frozen}, pair_with_best)
