"""Runs algorithms exactly: all tuples of samples are listed and weighted by their probability.

A matrix game is a one-token model whose parameters are logits, one per action. A batch lists all
tuples of responses that the two sides can sample, with their probabilities in place of prompts. The
algorithm, its rollout step and its update are those of training. Sequences have at most two
tokens.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.algorithm import DATA
from nlhf_jax.structs import Comparison, Responses, Scores, TrainState
from nlhf_jax.training.rollout_step import make_rollout_step
from nlhf_jax.training.update import initial_state, make_update
from tests.laws import tiny

# P[i, j] = P(y_i > y_j), from arXiv 2312.00886. Its table in appendix A has the winner in columns.
BRADLEY_TERRY = np.array([[1 / 2, 1 / 10, 1 / 3], [9 / 10, 1 / 2, 9 / 11], [2 / 3, 2 / 11, 1 / 2]])
AGGREGATE = np.array([[1 / 2, 2 / 3, 1 / 3], [1 / 3, 1 / 2, 2 / 3], [2 / 3, 1 / 3, 1 / 2]])  # C.2
ROCK_PAPER_SCISSORS = np.array([[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]])
MU = np.array([0.6, 0.3, 0.1])

# b beats a, c beats b, a beats c: the Nash is (4, 3, 4) / 11. The runs on it start at its own mu.
CYCLE = np.array([[0.5, 0.1, 0.8], [0.9, 0.5, 0.1], [0.2, 0.9, 0.5]])
CYCLE_MU = np.array([0.2, 0.5, 0.3])

# Logits of two policies over two tokens of two symbols: the first token, the second after 0, after
# 1. Their second tokens differ after one first token only, so that the two kinds of mixture differ
# in the first token.
TWO_TOKENS = {
  'policy': np.array([[0, 0], [2, 0], [0, 0]], float),
  'reference': np.array([[0, 0], [0, 2], [0, 0]], float),
}

# Policy-gradient algorithms, each with the KL coefficient of each of its slots.
POLICY_GRADIENTS = {
  'self_play': (catalogue.self_play(0.1), {'reference': 0.1}),
  'nash_md_pg': (catalogue.nash_md_pg(0.125, 0.1), {'reference': 0.1}),
  'best_response': (catalogue.best_response(0.1), {'reference': 0.1}),
  'rlhf_pg': (catalogue.rlhf_pg(0.1), {'reference': 0.1}),
  'nash_ema_pg': (catalogue.nash_ema_pg(0.1, 0.1), {'reference': 0.1}),
  'spo': (catalogue.spo(0.1, 2, 3), {'reference': 0.1}),
  'mpo': (catalogue.mpo(0.1, 2.0, 1, 10**9), {'magnet': 0.1, 'snapshot': 0.5}),
  'nash_prox': (catalogue.nash_prox(0.1, 2.0, 0.1), {'reference': 0.1, 'centre': 0.5}),
}


def raters(e):
  """Three types of raters, of shares 1/3 - e, 1/3 + e/2, 1/3 + e/2 (arXiv 2312.00886, s. 3.2)."""
  upper = np.array([[0, 1 / 3 + e / 2, 2 / 3 + e / 4], [0, 0, 1 / 3 - e / 4], [0, 0, 0]])
  return upper + np.tril(1 - upper.T, -1) + np.eye(3) / 2


def random_game(seed, actions=4):
  """A preference matrix whose entries above the diagonal are uniform in [0, 1]."""
  upper = np.triu(np.random.default_rng(seed).random((actions, actions)) - 0.5, 1)
  return 0.5 + upper - upper.T


# Tables: logits -> log-probabilities of the tokens of all responses, [V, T].


def one_token(logits):
  """A response is one action."""
  return jax.nn.log_softmax(logits)[:, None]


def two_tokens(logits):
  """The sequences 00, 01, 10, 11, scored by logits laid out as in `TWO_TOKENS`."""
  log_pi = jax.nn.log_softmax(logits)
  return jnp.stack([jnp.repeat(log_pi[0], 2), log_pi[1:].ravel()], axis=-1)


def mixed(mixture, log_probs):
  """log of prod_slot pi_slot(y)^weight / Z, over the last axis; slot -> log-probabilities."""
  return jax.nn.log_softmax(sum(weight * log_probs[slot] for slot, weight in mixture.items()))


def sampled(algorithm):
  """The mixtures that the algorithm samples from, the left ones first."""
  return [m for side in (algorithm.left, algorithm.right) if isinstance(side, list) for m in side]


def chances(algorithm, log_probs, shares=None):
  """The probability of every tuple of samples; the first index changes slowest.

  Responses from data come first: `shares` [V] of demonstrations, or [V, V] of pairs.
  """
  log = jnp.zeros(1) if shares is None else jnp.log(shares).ravel()
  for mixture in sampled(algorithm):
    log = (log[:, None] + mixed(mixture, log_probs)).ravel()
  return jnp.exp(log)


def make_listed(algorithm, table=one_token, integrated=False):
  """(slot -> logits, payoff [V, V], shares) -> the comparison with every tuple of samples.

  With `integrated`, left responses get their mean payoff over the distribution of the right side.
  """

  def listed(params, payoff, shares=None):
    log_probs = {slot: table(logits).sum(-1) for slot, logits in params.items()}
    from_data = [algorithm.left, algorithm.right].count(DATA)
    draws = from_data + len(sampled(algorithm))
    places = np.indices((len(payoff),) * draws).reshape(draws, -1).T
    chance = chances(algorithm, log_probs, shares)
    one = np.ones((len(places), 1, 1), bool)
    sides = [Responses(places[:, n, None, None], one) for n in range(draws)]
    batch = chance
    if from_data:
      batch = Comparison(chance, *sides[:from_data])
    if from_data == 2:
      batch = batch._replace(payoff=payoff[places[:, 0], places[:, 1]][:, None, None])

    def feedback(comparison, key):
      del key
      if integrated:
        (opponent,) = algorithm.right
        gain = payoff @ jnp.exp(mixed(opponent, log_probs))
        return gain[comparison.left.tokens]
      return payoff[comparison.left.tokens, comparison.right.tokens.swapaxes(1, 2)]

    play = make_rollout_step(algorithm, lambda _: lambda *_: sides[from_data:], feedback)
    return play(params, batch, jax.random.key(0))

  return listed


def expected(algorithm):
  """The algorithm with its loss weighted by the probabilities, which are in place of prompts."""

  def loss(scores, comparison):
    values = algorithm.loss(scores, comparison)
    chance = comparison.prompts
    return len(chance) * chance * jnp.mean(values.reshape(len(chance), -1), axis=1)

  return algorithm._replace(loss=loss)


def make_score(table=one_token):
  """The scores of listed responses, whose token is their index in the table."""

  def score(logits, comparison):
    log_pi = table(logits)
    left, right = comparison.left, comparison.right
    return Scores(*(side and log_pi[side.tokens[..., 0]] for side in (left, right)))

  return score


def make_exact_update(algorithm, optimizer, table=one_token, integrated=False):
  """(state, payoff, shares) -> state: the update of training, in expectation."""
  update = make_update(expected(algorithm), make_score(table), optimizer, lambda *_: {})
  listed = make_listed(algorithm, table, integrated)

  def exact_update(state, payoff, shares=None):
    return update(state, listed(state.slots, payoff, shares), jax.random.key(0))[0]

  return exact_update


def natural(rate):
  """The gradient over the probabilities: the natural one, for policies of one token.

  A policy gradient then moves logits by rate (u - penalties), and at a rate of 1 / 4 a square loss
  of pairs sampled from the policy is minimised by one update.
  """

  def update(gradient, memory, logits):
    change = gradient / jax.nn.softmax(logits)
    return -rate * (change - jnp.mean(change)), memory

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_ascent(algorithm, table=one_token):
  """(slot -> logits, payoff) -> E[g]: what an update at learning rate one adds to the policy."""
  update = tiny.jit(make_exact_update(algorithm, optax.sgd(1.0), table))

  def ascent(params, payoff):
    state = TrainState(jnp.int32(0), params, optax.sgd(1.0).init(params['policy']), {})
    return np.array(update(state, jnp.asarray(payoff)).params['policy']) - params['policy']

  return ascent


@functools.cache
def ascent_of(name):
  """`make_ascent` of one of `POLICY_GRADIENTS`, compiled once."""
  return make_ascent(POLICY_GRADIENTS[name][0])


def make_run(algorithm, optimizer, steps, integrated=False, table=one_token):
  """(preference [V, V], start [V], shares) -> the policy after every update [steps, V], and slots.

  Both in log-probabilities. Every slot starts at `start`.
  """
  update = make_exact_update(algorithm, optimizer, table, integrated)

  @tiny.jit
  def run(payoff, start, shares):
    def step(state, _):
      state = update(state, payoff, shares)
      return state, jax.nn.log_softmax(state.params['policy'])

    start = initial_state(algorithm, jnp.log(start), optimizer)
    state, path = lax.scan(step, start, length=steps)
    return path, jax.tree.map(jax.nn.log_softmax, state.slots)

  def on(preference, start, shares=None):
    shares = None if shares is None else jnp.asarray(shares)
    return jax.tree.map(np.array, run(jnp.asarray(preference) - 0.5, jnp.asarray(start), shares))

  return on


def make_find_fixed_point(algorithm, optimizer, steps, integrated=False, table=one_token):
  """As `make_run`, returning the slots only; fails if the last update still moved the policy."""
  run = make_run(algorithm, optimizer, steps, integrated, table)

  def find_fixed_point(preference, start=MU, shares=None):
    path, slots = run(preference, start, shares)
    moved = abs(path[-1] - path[-2]).max()
    assert moved < 1e-10, f'no fixed point: the last step moved a log-probability by {moved:.2g}'
    return slots

  return find_fixed_point
