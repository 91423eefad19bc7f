"""Padding, of any length and content, changes no probability, loss or gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.algorithms.losses import (
  anchored_down,
  cross_entropy,
  likelihood,
  log_odds_per_token,
  pairwise_loss,
  per_token,
  policy_gradient,
  prospect,
  regression,
  winner_likelihood,
)
from nlhf_jax.judges.learned import make_preference_network
from nlhf_jax.judges.reward import make_reward_network
from nlhf_jax.models import scoring
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.structs import Comparison, Prompts, Responses
from tests.laws import tiny

VOCABULARY, SEPARATOR, STOP = 11, 1, 2
DECODER = tiny.decoder(VOCABULARY)
NETWORK = make_preference_network(DECODER, tiny.WIDTH, SEPARATOR)
POLICY, REFERENCE = (tiny.parameters(DECODER, seed) for seed in (0, 1))
READOUTS = dict(zip(('token', 'verdict'), np.eye(2, tiny.WIDTH, dtype=np.float32), strict=True))
PROMPTS = [[3, 4, 5, 6], [7, 8]]
LEFT = [[[9, 3, 2], [4, 2]], [[5, 6, 7], [2]]]  # one of them truncated before its stop token
RIGHT = [[[10, 2]], [[3, 4, 2]]]


def ragged(rows, length, left):
  """Rows of tokens padded to `length` with random tokens, and their mask."""
  tokens = np.random.default_rng(length).integers(0, VOCABULARY, (len(rows), length), np.int32)
  counts = np.array([len(row) for row in rows])[:, None]
  columns = np.arange(length)
  mask = columns >= length - counts if left else columns < counts
  tokens[mask] = np.concatenate(rows)
  return tokens, mask


def responses(rows, length):
  padded = ragged([row for of_prompt in rows for row in of_prompt], length, left=False)
  return Responses(*(leaf.reshape(len(rows), -1, length) for leaf in padded))


def comparison(extra):
  """The same data with `extra` tokens of padding before prompts and after responses."""
  payoff = np.array([[[0.2], [-0.3]], [[0.4], [0.1]]], np.float32)
  prompts = Prompts(*ragged(PROMPTS, 4 + extra, left=True))
  return Comparison(prompts, responses(LEFT, 3 + extra), responses(RIGHT, 3 + 2 * extra), payoff)


SCORE = scoring.make_score(DECODER)
REWARDS = make_reward_network(DECODER, tiny.WIDTH, SEPARATOR)
LOSSES = [
  policy_gradient(reference=0.1),
  likelihood,
  winner_likelihood,
  pairwise_loss(jnp.square, margin=0.5, value=per_token, reference=1.0),
  pairwise_loss(jax.nn.softplus, beta=0.5, reference=1.0),
  pairwise_loss(jax.nn.softplus, value=log_odds_per_token),
  anchored_down(0.5, reference=1.0),
  regression(2.0, reference=1.0),
  prospect(0.5, 2.0, 1.0, reference=1.0),
]


def policy_losses(params, data):
  data = data._replace(right=data.left)  # then scored once
  scores = {'policy': SCORE(params, data), 'reference': SCORE(REFERENCE, data)}
  return [loss(scores, data) for loss in LOSSES], scores['policy'].left


def preference_losses(params, data):
  logit = NETWORK.logit(params, data)
  return [cross_entropy({'policy': logit}, data)], logit


def reward_losses(params, data):
  rewards = REWARDS.score(params, data)
  return [pairwise_loss(jax.nn.softplus)({'policy': rewards}, data)], rewards.left - rewards.right[
    :, :1
  ]


NETWORKS = {
  'policy': (policy_losses, POLICY),
  'preference': (preference_losses, {'backbone': POLICY} | READOUTS),
  'reward': (reward_losses, {'backbone': POLICY} | READOUTS),
}


@functools.cache
def evaluated(name, extra):
  """The losses of each example, the gradient of their means, and the network's outputs."""
  network, params = NETWORKS[name]

  def mean(params, data):
    losses, outputs = network(params, data)
    return sum(jnp.mean(loss) for loss in losses), (losses, outputs)

  gradient = tiny.jit(jax.grad(mean, has_aux=True))
  gradient, (losses, outputs) = gradient(params, comparison(extra))
  return jax.tree.map(np.array, (losses, gradient, outputs))


def assert_close(padded, tight):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), padded, tight)


@pytest.mark.parametrize('name', NETWORKS)
def test_padding_changes_no_loss(name):
  assert_close(evaluated(name, 3)[0], evaluated(name, 0)[0])


@pytest.mark.parametrize('name', NETWORKS)
def test_padding_changes_no_gradient(name):
  tight, padded = (evaluated(name, extra)[1] for extra in (0, 3))
  # One scale for all parameters: small gradients that are differences have large rounding errors.
  scale = max(abs(leaf).max() for leaf in jax.tree.leaves(tight))
  assert_close(*(jax.tree.map(lambda leaf: leaf / scale, gradient) for gradient in (padded, tight)))


def test_padding_changes_no_log_probability():
  tight, padded = (evaluated('policy', extra)[2] for extra in (0, 3))
  assert_close(padded[..., :3], tight)
  assert np.all(padded[..., 3:] == 0)
  np.testing.assert_array_equal(tight != 0, comparison(0).left.mask)


@pytest.mark.parametrize('name', ['preference', 'reward'])
def test_padding_changes_no_judge(name):
  tight, padded = (evaluated(name, extra)[2] for extra in (0, 3))
  assert np.std(tight) > 0.1
  assert_close(padded, tight)


def test_padding_changes_no_sample():
  rollout = make_rollout(DECODER, [{'policy': 1.0}], length=6, stop=STOP, count=4)
  (tight,), (padded,) = (
    rollout({'policy': POLICY}, comparison(extra).prompts, jax.random.key(0)) for extra in (0, 3)
  )
  np.testing.assert_array_equal(padded.tokens, tight.tokens)
  np.testing.assert_array_equal(padded.mask, tight.mask)
  np.testing.assert_allclose(padded.log_probs, tight.log_probs, atol=1e-5)
