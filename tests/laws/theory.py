"""The fixed points of algorithms, in closed form, by `games.exact`, or as roots of a gradient.

Each theory is a function (preference [V, V], mu [V], shares of the data) -> probabilities [V].
"""

import numpy as np
from scipy import optimize
from scipy.special import expit, log_softmax, logit, softmax

from nlhf_jax.games import exact as equilibria
from nlhf_jax.games.game import make_game
from tests.laws import tiny


@tiny.jit
def _equilibrium(game):
  return equilibria.equilibrium(game, tolerance=1e-20)


def gap(preference, pi):
  """max_i (P pi)_i - min_j (pi P)_j."""
  return (preference @ pi).max() - (pi @ preference).min()


def kl(log_p, log_q):
  return np.exp(log_p) @ (log_p - log_q)


def regularised(tau):
  """The Nash equilibrium regularised by tau KL(pi, mu)."""

  def theory(preference, mu, shares=None):
    del shares
    found = _equilibrium(make_game(preference - 0.5, mu, tau))
    assert found.exploitability < 1e-18
    return np.exp(found.log_pi)

  return theory


def biased(beta, tau):
  """The policy whose mixture with mu is the equilibrium at tau / (1 - beta)."""

  def theory(preference, mu, shares=None):
    del shares
    log_mixture = np.log(regularised(tau / (1 - beta))(preference, mu))
    return softmax((log_mixture - beta * np.log(mu)) / (1 - beta))

  return theory


def reply(tau, to_data=False):
  """mu exp(P(y > opponent) / tau) / Z, where the opponent is mu, or the sampler of the data."""

  def theory(preference, mu, shares):
    opponent = shares.sum(0) if to_data else mu
    return softmax(np.log(mu) + preference @ opponent / tau)

  return theory


def demonstrations(preference, mu, shares):
  """What the demonstrations are distributed as."""
  del preference, mu
  return shares


def lottery(preference, mu, shares=None):
  """The Nash of the game itself."""
  del mu, shares
  return equilibria.maximal_lottery(preference - 0.5)


def lottery_of_odds(preference, mu, shares=None):
  """The Nash of the game whose payoff is the log-odds."""
  del mu, shares
  return equilibria.maximal_lottery(logit(preference))


def balanced(force):
  """The policy on which `force(log pi, preference, mu, shares)`, [V], which sums to 0, is 0."""

  def theory(preference, mu, shares=None):
    def residual(logits):
      pull = force(log_softmax(logits), preference, mu, shares)
      return pull + logits.sum()  # logits have no origin: this one is where they sum to 0

    found = optimize.root(residual, np.log(mu) - np.log(mu).mean(), tol=1e-13)
    assert abs(residual(found.x)).max() < 1e-10, found.message
    return softmax(found.x)

  return theory


def leads(log_ratio):
  return log_ratio[:, None] - log_ratio


def sigmoids(beta, share=lambda p: p):
  """p - sigmoid(beta z): what a logistic loss pulls at a lead z with."""
  return lambda p, z: share(p) - expit(beta * z)


def of_data(pull, anchored=True):
  """The balance of `pull(p, z)` over the pairs of the data."""

  def force(log_pi, preference, mu, shares):
    z = leads(log_pi - np.log(mu) if anchored else log_pi)
    return np.sum((shares + shares.T) * pull(preference, z), axis=1)

  return balanced(force)


def of_samples(pull):
  """The same over pairs of two responses of mu."""
  theory = of_data(pull)
  return lambda preference, mu, shares: theory(preference, mu, np.outer(mu, mu))


def online_dpo(beta):
  """P_BT(y > pi) = P(y > pi), with the reward r = beta log(pi / mu)."""

  def force(log_pi, preference, mu, shares):
    del shares
    difference = preference - expit(beta * leads(log_pi - np.log(mu)))
    return np.exp(log_pi) * (difference @ np.exp(log_pi))

  return balanced(force)


def xpo(alpha, beta):
  """Pairs of which one is the policy's and one mu's, and a push away from what mu would say."""

  def force(log_pi, preference, mu, shares):
    del shares
    pi = np.exp(log_pi)
    difference = preference - expit(beta * leads(log_pi - np.log(mu)))
    pairs = np.outer(pi, mu) + np.outer(mu, pi)
    return beta * np.sum(pairs * difference, axis=1) - alpha * (mu - pi)

  return balanced(force)


def simpo(beta, gamma):
  def pull(p, z):
    return p * expit(gamma - beta * z) - (1 - p) * expit(gamma + beta * z)

  return of_data(pull, anchored=False)


def slic(delta, weight):
  """Where no lead reaches delta, the hinge pulls constantly, against the likelihood's pull."""

  def theory(preference, mu, shares):
    del mu
    wins = np.sum((shares + shares.T) * preference, axis=1)  # the data's winners; they sum to 1
    pi = wins + np.sum((shares + shares.T) * (2 * preference - 1), axis=1) / weight
    assert abs(leads(np.log(pi))).max() < delta
    return pi

  return theory


def kto(beta, desirable, undesirable):
  def force(log_pi, preference, mu, shares):
    often, pi = (shares + shares.T).sum(0) / 2, np.exp(log_pi)
    p = ((shares + shares.T) * preference).sum(1) / (2 * often)
    ratio = log_pi - np.log(mu)
    lead = beta * (ratio - max(0, shares.sum(1) @ ratio))
    pull = often * (desirable * p - undesirable * (1 - p)) * expit(lead) * expit(-lead)
    return pull - pi * pull.sum()

  return balanced(force)


def rspo(eta, forward, reverse):
  """With two samples: the mean payoff of each is half its win rate."""

  def force(log_pi, preference, mu, shares):
    del shares
    pi, ratio = np.exp(log_pi), log_pi - np.log(mu)
    gain = (preference - 0.5) @ pi / 2
    return pi * (2 * eta * gain - 2 * reverse * (ratio - pi @ ratio)) - forward * (pi - mu)

  return balanced(force)


def bradley_terry(preference, weights):
  """The best reward on pairs drawn with `weights` [V, V], the first action's being 0."""
  rewards = of_data(sigmoids(1.0), anchored=False)
  log_pi = np.log(rewards(preference, np.full(len(weights), 1 / len(weights)), weights))
  return log_pi - log_pi[0]
