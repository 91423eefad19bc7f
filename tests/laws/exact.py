"""The exact form of a row: every response is listed and weighed by its probability.

A matrix game is a one-token model whose parameters are logits, one an action. Left out: games in
which a row is sampled, and sequences longer than two tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny
from jax import lax

from nlhf_jax.algorithms import catalogue
from nlhf_jax.structs import Comparison, Scores, TrainState
from nlhf_jax.training.steps import initial_state, make_update

# P[i, j] = P(y_i > y_j), from arXiv 2312.00886. Its table in appendix A has the winner in columns.
BRADLEY_TERRY = np.array([[1 / 2, 1 / 10, 1 / 3], [9 / 10, 1 / 2, 9 / 11], [2 / 3, 2 / 11, 1 / 2]])
AGGREGATE = np.array([[1 / 2, 2 / 3, 1 / 3], [1 / 3, 1 / 2, 2 / 3], [2 / 3, 1 / 3, 1 / 2]])  # C.2
ROCK_PAPER_SCISSORS = np.array([[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]])
MU = np.array([0.6, 0.3, 0.1])

# Logits of two policies over two tokens of two symbols: the first token, the second after 0, after
# 1. They differ in one row only, so that a mixture's first token is where its two kinds part.
TWO_TOKENS = {
  'policy': np.array([[0, 0], [2, 0], [0, 0]], float),
  'reference': np.array([[0, 0], [0, 2], [0, 0]], float),
}

ROWS = {
  'self_play': catalogue.self_play(0.1),
  'nash_md_pg': catalogue.nash_md_pg(0.125, 0.1),
  'best_response': catalogue.best_response(0.1),
  'nash_ema_pg': catalogue.nash_ema_pg(0.1, 0.1),
}


def raters(e):
  """Three types of raters, of shares 1/3 - e, 1/3 + e/2, 1/3 + e/2 (arXiv 2312.00886, s. 3.2)."""
  upper = np.array([[0, 1 / 3 + e / 2, 2 / 3 + e / 4], [0, 0, 1 / 3 - e / 4], [0, 0, 0]])
  return upper + np.tril(1 - upper.T, -1) + np.eye(3) / 2


def random_game(seed, actions=4):
  """A preference matrix whose entries above the diagonal are uniform in [0, 1]."""
  upper = np.triu(np.random.default_rng(seed).random((actions, actions)) - 0.5, 1)
  return 0.5 + upper - upper.T


def one_token(logits, comparison=None):
  """Every action as a response, scored by logits [V]."""
  del comparison
  log_pi = jax.nn.log_softmax(logits)[None, :, None]
  return Scores(log_pi, log_pi)


def two_tokens(logits, comparison=None):
  """The sequences 00, 01, 10, 11, scored by logits laid out as in `TWO_TOKENS`."""
  del comparison
  log_pi = jax.nn.log_softmax(logits)
  first = log_pi[0, jnp.array([0, 0, 1, 1])]
  second = log_pi[1:].reshape(4)
  log_pi = jnp.stack([first, second], axis=-1)[None]
  return Scores(log_pi, log_pi)


def mixed(mixture, log_probs):
  """log of prod_slot pi_slot(y)^weight / Z, over the last axis; slot -> log-probabilities."""
  return jax.nn.log_softmax(sum(weight * log_probs[slot] for slot, weight in mixture.items()))


def weights(algorithm, scores):
  """The probability that the row samples each pair of the responses listed, [B, K, J]."""
  left = mixed(algorithm.left, {slot: s.left.sum(-1) for slot, s in scores.items()})
  right = mixed(algorithm.right, {slot: s.right.sum(-1) for slot, s in scores.items()})
  return jnp.exp(left[:, :, None] + right[:, None, :])


def expected(algorithm):
  """The same row, with the expectation over its samples for a loss."""

  def loss(scores, payoff):
    chance = lax.stop_gradient(weights(algorithm, scores))
    return jnp.sum(chance * algorithm.loss(scores, payoff), axis=(1, 2))

  return algorithm._replace(loss=loss)


def _update(algorithm, rate, score):
  return make_update(expected(algorithm), score, optax.sgd(rate), lambda *_: {})


def _game(payoff):
  return Comparison(None, None, None, payoff[None])


def make_ascent(algorithm, score=one_token):
  """(slot -> logits, payoff) -> E[g]: what an update at learning rate one adds to the policy.

  Give it NumPy arrays: an update takes over those of JAX.
  """
  update = _update(algorithm, 1.0, score)

  def ascent(params, payoff):
    state = TrainState(np.int32(0), params, optax.sgd(1.0).init(params['policy']))
    return np.array(update(state, _game(payoff))[0].params['policy']) - params['policy']

  return ascent


def make_settle(algorithm, rate=3.0, steps=5000):
  """(payoff [V, V], mu [V]) -> slot -> log-probabilities, every slot started at mu and run to rest.

  Gradient descent on the logits. Where the payoff turns the policy by i w, it is stable at rates
  below 2 tau / (tau^2 + w^2), over the largest probability.
  """
  update = _update(algorithm, rate, one_token)

  @tiny.jit
  def run(payoff, mu):
    def step(last_two, _):
      state, _ = last_two
      return (update(state, _game(payoff))[0], state.params), None

    state = initial_state(algorithm, jnp.log(mu), optax.sgd(rate))
    (state, before), _ = lax.scan(step, (state, state.params), length=steps)
    moved = jax.tree.map(lambda a, b: jnp.max(abs(a - b)), state.params, before)
    return jax.tree.map(jax.nn.log_softmax, state.params), moved

  def settle(payoff, mu=MU):
    slots, moved = jax.tree.map(np.array, run(payoff, mu))
    assert max(moved.values()) < 1e-10, f'not at rest: the last step moved logits by {moved}'
    return slots

  return settle
