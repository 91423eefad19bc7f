"""Sampled gradients of a leader and of its follower are unbiased estimates of the exact ones.

The toy transformer and the statistic of `test_estimators`: 40 responses to each of two prompts, and
40 answers to each response, which the follower reads. Everything is enumerated for the exact
gradients; the sampled ones are those of the real updates on the real play.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

from nlhf_jax.models import scoring
from nlhf_jax.structs import Prompts, Responses
from nlhf_jax.training.opponent_play import (
  Prices,
  make_log_ratio,
  make_opponent_play,
  sample_answer,
)
from tests.laws import test_estimators as toy
from tests.laws import tiny

pytestmark = pytest.mark.slow

BATCHES, ROWS = 64, 1024
SCORE = scoring.make_score(toy.DECODER)
SLOTS = {
  'policy': toy.PARAMS['policy'],
  'reference': toy.PARAMS['reference'],
  'opponent': toy.PARAMS['snapshot'],
}


def ask(prompts, side):
  """The prompt and the response, without padding between them."""
  tokens = jnp.concatenate([prompts.tokens, side.tokens[:, 0]], axis=1)
  mask = jnp.concatenate([prompts.mask, side.mask[:, 0]], axis=1)
  order = jnp.argsort(mask, axis=1, stable=True)
  return Prompts(*(jnp.take_along_axis(leaf, order, axis=1) for leaf in (tokens, mask)))


@functools.cache
def played(in_reward):
  """The comparisons of both players, [batches, rows, ...]."""
  prices = Prices(toy.TAU, in_reward)
  sample = sample_answer(toy.rollouts, ask)
  play = make_opponent_play(sample, toy.judge, make_log_ratio(SCORE), prices)
  prompts = Prompts(*(jnp.tile(leaf, (ROWS // 2, 1)) for leaf in toy.PROMPTS))
  keys = jax.random.split(jax.random.key(0), BATCHES)
  return tiny.jit(lambda keys: lax.map(lambda key: play(SLOTS, prompts, key), keys))(keys)


def every_response():
  """Prompts and responses, both listed: [80, 3] and [80, 1, 3]."""
  repeated = Prompts(*(jnp.repeat(leaf, toy.COUNT, axis=0) for leaf in toy.PROMPTS))
  tokens, mask = (jnp.tile(leaf, (2, 1))[:, None] for leaf in (toy.TOKENS, toy.MASK))
  return repeated, Responses(tokens, mask)


def answers(params):
  """Log-probabilities of all answers to all responses, [2, 40, 40]."""
  asked = ask(*every_response())
  tokens, mask = (
    jnp.broadcast_to(leaf, (len(asked.tokens), *leaf.shape)) for leaf in (toy.TOKENS, toy.MASK)
  )
  found = scoring.log_probs(toy.DECODER, params, asked, Responses(tokens, mask))
  return jnp.sum(found, axis=-1).reshape(2, toy.COUNT, toy.COUNT)


@functools.cache
def follower_tables():
  return [np.array(tiny.jit(answers)(SLOTS[slot])) for slot in ('opponent', 'reference')]


def leader_gradient():
  log_omega, log_reference = follower_tables()
  won = -toy.PAYOFF.swapaxes(1, 2)  # of the response, by answer
  reward = np.sum(np.exp(log_omega) * (won + toy.TAU * (log_omega - log_reference)), axis=2)

  def objective(table):
    log_pi, log_mu = jnp.sum(table, axis=-1), toy.tables()['reference'].sum(axis=-1)
    return -jnp.sum(jnp.exp(log_pi) * (reward - toy.TAU * (log_pi - log_mu))) / 2

  return toy.derivative(objective)


def test_leader_is_paid_with_the_kl_of_its_follower():
  exact = leader_gradient()
  gradients = toy.sampled_gradients(toy.SELF_PLAY, played(toy.TAU)['policy'])
  toy.assert_unbiased(gradients, exact, 0.05)
  # A planted error: the log-ratio has the wrong sign.
  wrong = toy.sampled_gradients(toy.SELF_PLAY, played(-toy.TAU)['policy'])
  scores, _ = toy.errors(wrong, exact)
  assert abs(scores).max() > toy.THRESHOLD


def test_follower_learns_from_what_it_reads():
  pi = toy.probabilities({'policy': 1.0})
  _, log_reference = follower_tables()
  payoff = toy.PAYOFF.swapaxes(1, 2)  # of the answer, by response and answer

  @tiny.jit
  @jax.grad
  def objective(params):
    log_omega = answers(params)
    gain = jnp.exp(log_omega) * (payoff - toy.TAU * (log_omega - log_reference))
    return -jnp.sum(pi[:, :, None] * gain) / 2

  exact = np.array(ravel_pytree(objective(SLOTS['opponent']))[0], float)
  slots = {'policy': SLOTS['opponent'], 'reference': SLOTS['reference']}
  one = lambda batch: ravel_pytree(toy.update_gradient(toy.SELF_PLAY, SCORE, slots, batch))[0]
  gradients = tiny.jit(lambda batches: lax.map(one, batches))
  batches = played(toy.TAU)['opponent']
  toy.assert_unbiased(np.array(gradients(batches), float), exact, 0.08)
  # A planted error: it is scored as if it had read the prompt alone.
  prompts = Prompts(*(jnp.tile(leaf, (BATCHES, ROWS // 2, 1)) for leaf in toy.PROMPTS))
  blind = np.array(gradients(batches._replace(prompts=prompts)), float)
  scores, _ = toy.errors(blind, exact)
  assert abs(scores).max() > toy.THRESHOLD
