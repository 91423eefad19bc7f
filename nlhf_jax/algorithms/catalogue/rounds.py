"""Algorithms in rounds: the policy pi_t samples, and the policy is fitted to a target.

pi_t, the policy at the start of the round, is the slot `snapshot`.
"""

import jax
import jax.numpy as jnp

from nlhf_jax.algorithms.algorithm import (
  BENDS_LUCK,
  DATA,
  LEFT,
  SELECTS_LUCK,
  SNAPSHOT,
  Algorithm,
  mixture,
)
from nlhf_jax.algorithms.losses import (
  forward_kl,
  pairwise_loss,
  regression,
  squared_ratio,
  weighted_sum,
)
from nlhf_jax.algorithms.references import frozen, history, snapshot
from nlhf_jax.algorithms.selection import (
  best_against_worst,
  best_and_worst,
  chain,
  gate_payoff,
  pair_by_mean_payoff,
  pair_by_predicted_payoff,
  payoff_to_log_odds,
  split_pairs,
  subtract_constant,
  subtract_log_partition,
  token_overlap,
)
from nlhf_jax.ranges import AtLeastOne, AtLeastTwo, Fraction, NonNegative, Positive


def spin(beta: Positive, every: AtLeastOne) -> Algorithm:
  """SPIN: -log sigmoid(beta (rho_t(y) - rho_t(y'))), y from data, y' ~ pi_t (arXiv 2401.01335)."""
  loss = pairwise_loss(jax.nn.softplus, beta=beta, snapshot=1.0)
  return Algorithm(DATA, [SNAPSHOT], loss, {'snapshot': snapshot(every)})


def sppo(eta: Positive, samples: AtLeastTwo, every: AtLeastOne, log_z: Fraction) -> Algorithm:
  """SPPO: (rho_t(y) - eta (P^(y > pi_t) - log_z))^2, best and worst of K ~ pi_t (2405.00675).

  P^ is the mean over all K samples, including y. `log_z`, in units of eta, is 1/2 in the paper.
  """
  return Algorithm(
    [SNAPSHOT] * samples,
    LEFT,
    regression(eta, snapshot=1.0),
    {'snapshot': snapshot(every)},
    chain(subtract_constant(log_z - 0.5), best_and_worst),
    against_users=SELECTS_LUCK,
  )


def sppo_estimated(eta: Positive, samples: AtLeastTwo, every: AtLeastOne) -> Algorithm:
  """SPPO with log Z = log mean exp(eta P^) over the K samples, instead of a constant.

  A variant of SPPO (arXiv 2405.00675), which is exact at every eta as K grows.
  """
  select = chain(subtract_log_partition(eta), best_and_worst)
  return sppo(eta, samples, every, log_z=0.5)._replace(select=select)


def sppo_tempered(
  eta: Positive, samples: AtLeastTwo, every: AtLeastOne, log_z: Fraction, temperature: Positive
) -> Algorithm:
  """SPPO on samples of tempered tokens, pi_t^(1 / T), whose fit is scored at temperature 1.

  The loss is (rho_t(y) - eta (P^(y > pi_t) - log_z))^2, a variant of SPPO (arXiv 2405.00675): what
  its released code does at T = .7, and with `filters.top_p` at .9. For responses of one token the
  *tempered* policy ends at the lottery, and pi, which is its power T, does not. With top-k or top-p
  that is the lottery of the responses that they leave in, which depend on the start.
  """
  sampler = mixture(snapshot=1 / temperature)
  algorithm = sppo(eta, samples, every, log_z)
  return algorithm._replace(left=[sampler] * samples, truncated=True)


def sppo_pair(eta: Positive, samples: AtLeastTwo, every: AtLeastOne) -> Algorithm:
  """SPPO with P(y_w > y_l) as P^ of the winner, and 1 - P(y_w > y_l) as that of the loser.

  A variant of SPPO (arXiv 2405.00675): `sppo_single` of its released code without the factor 1/2.
  """
  select = chain(best_against_worst, split_pairs)
  return sppo(eta, samples, every, log_z=0.5)._replace(select=select)


def sppo_gated(eta: Positive, samples: AtLeastTwo, every: AtLeastOne, log_z: Fraction) -> Algorithm:
  """SPPO with the gate of S-SPPO: payoffs (P(y > y') - 1/2) (1 - similarity) (arXiv 2606.01561).

  Win rates of two responses come nearer to 1/2 the more alike they are. The paper's embedding is
  not published: here similarity is the cosine between the counts of tokens. The gate is symmetric,
  so that a game is played, with a lottery of its own; the paper's repulsion of hidden states is
  left out.
  """
  algorithm = sppo(eta, samples, every, log_z)
  return algorithm._replace(select=chain(gate_payoff(token_overlap), algorithm.select))


def gpo(eta: Positive, samples: AtLeastTwo, every: AtLeastOne) -> Algorithm:
  """GPO: SPPO on log-odds in place of probabilities (arXiv 2410.02197).

  The loss is (rho_t(y) - eta s(y))^2, with the mean s(y) of log-odds over pi_t. The paper's scores
  are a tenth of the log-odds, so its eta is ten times this one.
  """
  select = chain(payoff_to_log_odds, best_and_worst)
  algorithm = sppo(eta, samples, every, log_z=0.5)
  return algorithm._replace(select=select, payoffs=('log_odds',))


def rspo(
  eta: Positive, samples: AtLeastTwo, every: AtLeastOne, forward: NonNegative, reverse: NonNegative
) -> Algorithm:
  """RSPO: SPPO + forward E exp(min(-rho, 10)) + reverse E rho^2, rho to mu (arXiv 2503.00030).

  All terms are means over two responses, so `forward` and `reverse` are twice the released code's.
  """
  loss = weighted_sum(
    (1.0, regression(eta, snapshot=1.0)),
    (forward, forward_kl(10.0, reference=1.0)),
    (reverse, squared_ratio(reference=1.0)),
  )
  references = {'reference': frozen, 'snapshot': snapshot(every)}
  return sppo(eta, samples, every, log_z=0.5)._replace(loss=loss, references=references)


def rebel(eta: Positive, every: AtLeastOne) -> Algorithm:
  """REBEL: (rho_t(y_1) - rho_t(y_2) - eta (u(y_1) - u(y_2)))^2 (arXiv 2404.16767, eq. 4).

  The paper's loss times eta^2. u is the win rate against a third sample of pi_t; with a reward
  model u(y_1) - u(y_2) is the difference of rewards.
  """
  loss = pairwise_loss(jnp.square, margin=eta / 2, snapshot=1.0)
  references = {'snapshot': snapshot(every)}
  algorithm = Algorithm([SNAPSHOT] * 2, [SNAPSHOT], loss, references, pair_by_mean_payoff)
  return algorithm._replace(payoffs=('probability', 'reward'))


def dno(eta: Positive, every: AtLeastOne) -> Algorithm:
  """DNO: cross-entropy of sigmoid(eta (rho_t(y_1) - rho_t(y_2))) to sigmoid(u(y_1) - u(y_2)).

  (arXiv 2404.03715, algorithm 1.) The step size is 1 / eta. u is estimated on one sample; the mean
  of the sigmoid of that estimate is a little closer to 1/2 than the sigmoid of the true u.
  """
  loss = pairwise_loss(jax.nn.softplus, beta=eta, label=jax.nn.sigmoid, snapshot=1.0)
  algorithm = rebel(1 / eta, every)._replace(loss=loss, payoffs=('probability',))
  return algorithm._replace(against_users=BENDS_LUCK)


def inpo(tau: NonNegative, eta: Positive, every: AtLeastOne) -> Algorithm:
  """INPO: (h_t(y_w) - h_t(y_l) - 1 / (2 eta))^2, y, y' ~ pi_t (arXiv 2407.00617, eq. 11).

  h_t is the log-ratio to mu^(tau/eta) pi_t^(1-tau/eta). The step size is 1 / eta; eta must be at
  least tau.
  """
  anchors = mixture(reference=tau / eta, snapshot=1 - tau / eta)
  loss = pairwise_loss(jnp.square, margin=1 / (2 * eta), **anchors)
  references = {'reference': frozen, 'snapshot': snapshot(every)}
  return Algorithm([SNAPSHOT], [SNAPSHOT], loss, references)


def comal(tau: NonNegative, eta: Positive, every: AtLeastOne, reset: AtLeastOne) -> Algorithm:
  """COMAL: INPO around a magnet that becomes the policy every `reset` updates (arXiv 2410.23223).

  The loss is (h_t(y_w) - h_t(y_l) - 1 / (2 eta))^2, as INPO's, with the magnet in the place of mu.
  Its limit is the Nash equilibrium of the unregularised game, if the rounds between two resets
  nearly solve the regularised one.
  """
  anchors = mixture(magnet=tau / eta, snapshot=1 - tau / eta)
  return inpo(tau, eta, every)._replace(
    loss=pairwise_loss(jnp.square, margin=1 / (2 * eta), **anchors),
    references={'magnet': snapshot(reset), 'snapshot': snapshot(every)},
  )


def mnpo(ratio: Fraction, eta: Positive, every: AtLeastOne, rounds: AtLeastOne) -> Algorithm:
  """TD-MNPO: (rho(y_w) - rho(y_l) - 1 / (2 eta))^2 around mu and past policies (arXiv 2509.23102).

  mu has the weight `ratio`, and pi_t, pi_{t-1}, ..., `rounds` of them, share the rest equally.
  """
  past = history(rounds, every)
  anchors = mixture(reference=ratio, **dict.fromkeys(past, (1 - ratio) / rounds))
  sampler = [mixture(history_1=1.0)]
  loss = pairwise_loss(jnp.square, margin=1 / (2 * eta), **anchors)
  return Algorithm(sampler, sampler, loss, {'reference': frozen, **past})


def onpo(eta: Positive, every: AtLeastOne) -> Algorithm:
  """ONPO: (log pi / pi'_t of y_w minus that of y_l - eta / 2)^2, y, y' ~ pi_t (2502.16852).

  Optimistic mirror descent (arXiv 2502.16852): a round minimises it twice, around pi'_t to get
  pi'_{t+1}, and around pi'_{t+1} to get pi_{t+1}. The slot `centre` holds pi'; each minimisation
  takes `every` updates.
  """
  loss = pairwise_loss(jnp.square, margin=eta / 2, centre=1.0)
  references = {'centre': snapshot(2 * every, first=every), 'snapshot': snapshot(2 * every)}
  return Algorithm([SNAPSHOT], [SNAPSHOT], loss, references)


def omwu(eta: Positive, every: AtLeastOne) -> Algorithm:
  """Optimistic multiplicative weights: pi_t exp(eta (2 P(y > pi_t) - P(y > pi_{t-1}))) / Z.

  (arXiv 2512.24818.) One regression a round, where ONPO, whose update is the same if both fits are
  exact, takes two. The last iterate converges to the Nash equilibrium. Both opponents are policies
  that were stored at the ends of rounds.
  """
  newest, before = mixture(history_1=1.0), mixture(history_2=1.0)
  loss = pairwise_loss(jnp.square, margin=eta / 2, history_1=1.0)
  references = history(2, every)
  return Algorithm([newest] * 2, [newest, before], loss, references, pair_by_predicted_payoff)
