"""The sampled gradient of conversations is an unbiased estimate of the exact one.

As in `test_estimators`, with a transformer, the real sampler and the real update; but a prompt is
followed by a token of the policy, one of a user who replies at random, and one more of the policy.
The 32 conversations of each of two prompts are listed. The statistic, and its power, are those of
`test_estimators`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.losses import log_ratio
from nlhf_jax.models import scoring
from nlhf_jax.sampling.dialogue_rollout import Dialogue, make_dialogue_rollout
from nlhf_jax.sampling.users import user_from_game
from nlhf_jax.structs import Comparison, Prompts, Responses, Scores
from tests.laws import test_estimators as whole
from tests.laws import tiny

TAU, ACTIONS, WORDS = 0.1, 4, np.array([3, 0])
# p(u|a): of every action of the first turn.
REPLIES = np.random.default_rng(0).dirichlet([1, 1], (1, ACTIONS))
A, U, B = (x.ravel() for x in np.indices((ACTIONS, 2, ACTIONS)))
COUNT = len(A)
TURN = np.broadcast_to([1, 0, 1 + 1], (2, COUNT, 3))
TOKENS = np.stack([A, WORDS[U], B], axis=-1).astype(np.int32)
ALL = Responses(jnp.tile(TOKENS, (2, 1, 1)), jnp.ones(TURN.shape, bool), turn=jnp.asarray(TURN))
INDEX = np.zeros((ACTIONS, 4, ACTIONS), np.int32)
INDEX[A, WORDS[U], B] = np.arange(COUNT)
PARAMS = {slot: whole.PARAMS[slot] for slot in ('policy', 'reference')}


def _payoff():
  """[2, 32, 32]: an order of the conversations, in which the user's word counts, and noise."""
  random = np.random.default_rng(5)
  score, noise = random.normal(size=(2, COUNT)), random.normal(size=(2, COUNT, COUNT))
  upper = np.triu(score[:, :, None] - score[:, None] + noise, 1)
  return np.tanh(upper - upper.swapaxes(1, 2)).astype(np.float32) / 2


PAYOFF = _payoff()


@tiny.jit
def listed(params):
  """Log-probabilities of the tokens, zero at the user's: [2, 32, 3]."""
  return scoring.log_probs(whole.DECODER, params, whole.PROMPTS, ALL)


@functools.cache
def tables():
  return {slot: np.array(listed(params)) for slot, params in PARAMS.items()}


@functools.cache
def jacobian(masked=True):
  """Derivatives of the policy's log-probabilities by its parameters: [192, parameters]."""
  rows = ALL if masked else ALL._replace(turn=None)

  @tiny.jit
  @jax.jacrev
  def derivatives(params):
    return scoring.log_probs(whole.DECODER, params, whole.PROMPTS, rows).ravel()

  by_row = jax.vmap(lambda row: ravel_pytree(row)[0])(derivatives(PARAMS['policy']))
  return np.array(by_row, float)


def mixture_table(weights):
  """Log-probabilities of the tokens under the mixture of each turn's next token: [2, 32, 3]."""
  mixed = sum(weight * tables()[slot].astype(float) for slot, weight in weights.items())
  by_turn = mixed.reshape(2, ACTIONS, 2, ACTIONS, 3).copy()
  by_turn[..., 0] -= np.log(np.exp(by_turn[:, :, :1, :1, 0]).sum(axis=1, keepdims=True))
  by_turn[..., 2] -= np.log(np.exp(by_turn[..., 2]).sum(axis=3, keepdims=True))
  return by_turn.reshape(2, COUNT, 3)


def occupied(table):
  """The probability of every conversation, the user's part included: [2, 32]."""
  return np.exp(np.sum(table, axis=-1)) * REPLIES[0, A, U]


def exact(algorithm, tau=TAU):
  """The gradient of minus the regularised preference, by the policy's parameters."""
  (opponent,) = algorithm.right
  gain = np.einsum('pij,pj->pi', PAYOFF, occupied(mixture_table(opponent)))

  def objective(table):
    log_pi, log_mu = jnp.sum(table, axis=-1), tables()['reference'].sum(axis=-1)
    chance = jnp.exp(log_pi) * REPLIES[0, A, U]
    return -jnp.sum(chance * (gain - tau * (log_pi - log_mu))) / 2

  gradient = tiny.jit(jax.grad(objective))(jnp.asarray(tables()['policy']))
  return np.array(gradient, float).ravel() @ jacobian()


def indices(responses):
  return jnp.asarray(INDEX)[tuple(jnp.moveaxis(responses.tokens, -1, 0))]


def look_up(table, comparison):
  row = whole.prompt_of(comparison)[:, None]
  sides = comparison.left, comparison.right
  return Scores(*(table[row, indices(side)] for side in sides))


@functools.cache
def draws(weights, batches, rows):
  """Comparisons [batches, rows, ...] of one conversation with another, from the real sampler."""
  user = user_from_game([REPLIES], np.arange(ACTIONS), WORDS)
  rollout = make_dialogue_rollout(
    whole.DECODER,
    [{'policy': 1.0}, dict(weights)],
    dialogue=Dialogue(user, 2, 1),
    length=1,
    stop=99,
  )
  prompts = Prompts(*(jnp.tile(leaf, (batches * rows // 2, 1)) for leaf in whole.PROMPTS))
  left, right = rollout(PARAMS, prompts, jax.random.key(0))
  pairs = Comparison(prompts, left, right)
  row = whole.prompt_of(pairs)[:, None, None]
  payoff = PAYOFF[row, np.asarray(indices(left))[:, :, None], np.asarray(indices(right))[:, None]]
  split = lambda leaf: jnp.asarray(leaf).reshape(batches, rows, *leaf.shape[1:])
  return jax.tree.map(split, pairs._replace(payoff=payoff))


def sampled(algorithm, batches, rows, masked=True):
  """The gradient that each batch hands to the optimiser, by the policy's parameters."""
  (opponent,) = algorithm.right
  pairs = draws(tuple(opponent.items()), batches, rows)
  start = jax.tree.map(jnp.asarray, tables())
  if not masked:
    rows = ALL._replace(turn=None)
    score = functools.partial(scoring.log_probs, whole.DECODER)
    start = {slot: score(params, whole.PROMPTS, rows) for slot, params in PARAMS.items()}
  step = functools.partial(whole.update_gradient, algorithm, look_up, start)
  gradients = tiny.jit(lambda pairs: lax.map(step, pairs))(pairs)
  return np.array(gradients, float).reshape(batches, -1) @ jacobian(masked)


@pytest.fixture(
  scope='module',
  params=[whole.QUICK, pytest.param(whole.FULL, marks=pytest.mark.slow)],
  ids='{} batches'.format,
)
def batches(request):
  """How many batches are drawn."""
  return request.param


CASES = {'self_play': catalogue.self_play(TAU), 'nash_md_pg': catalogue.nash_md_pg(0.5, TAU)}


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_sampled_gradients_average_to_the_exact_one(name, batches):
  algorithm = CASES[name]
  whole.assert_unbiased(sampled(algorithm, batches, 512), exact(algorithm), 0.08)


def own_turn(scores, comparison):
  """Credits each turn with its own log-ratio, without that of later turns; the price is 1."""
  log_pi, costs = scores['policy'].left, log_ratio(scores, 'left', {'reference': 1.0})
  regulariser = jnp.sum(log_pi * lax.stop_gradient(costs), axis=-1, keepdims=True)
  return regulariser - jnp.sum(log_pi, axis=-1, keepdims=True) * comparison.payoff


def test_planted_errors_are_found(batches):
  plain, costly = CASES['self_play'], catalogue.self_play(1.0)
  for gradients, truth in (
    (sampled(costly._replace(loss=own_turn), batches, 512), exact(costly, 1.0)),
    (sampled(plain, batches, 512, masked=False), exact(plain)),
  ):
    scores, _ = whole.errors(gradients, truth)
    assert abs(scores).max() > whole.THRESHOLD
