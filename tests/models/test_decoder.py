"""A causal network without a cache becomes a decoder that samples and scores like any other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from nlhf_jax.models.decoder import decoder_from_apply
from nlhf_jax.models.scoring import log_probs
from nlhf_jax.sampling import sampler
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.structs import Prompts
from tests.laws import tiny

VOCABULARY, WIDTH, STOP, LENGTH = 9, 6, 0, 5
POLICY, MIXTURE = {'policy': 1.0}, {'policy': 0.6, 'reference': 0.4}


def hidden(params, tokens):
  """A recurrent network; it starts at zero, and takes padding for a token like any other."""

  def step(state, x):
    state = jnp.tanh(x + state @ params['recurrent'])
    return state, state

  inputs = jnp.swapaxes(params['embedding'][tokens], 0, 1)
  return jnp.swapaxes(jax.lax.scan(step, jnp.zeros_like(inputs[0]), inputs)[1], 0, 1)


def logits(params, hidden):
  return hidden @ params['head']


def init(key):
  keys, shapes = (
    jax.random.split(key, 3),
    [(VOCABULARY, WIDTH), (WIDTH, WIDTH), (WIDTH, VOCABULARY)],
  )
  names = ('embedding', 'recurrent', 'head')
  return {name: jax.random.normal(key, s) for name, key, s in zip(names, keys, shapes, strict=True)}


DECODER = decoder_from_apply(hidden, logits, init)
PARAMS = {slot: tiny.parameters(DECODER, seed) for seed, slot in enumerate(MIXTURE)}


def some_prompts(extra=0):
  """Prompts of one to four tokens, with padding of any content on the left."""
  random = np.random.default_rng(0)
  tokens = random.integers(1, VOCABULARY, (6, 4))
  mask = np.arange(4) >= np.array([0, 3, 1, 2, 0, 1])[:, None]
  padding = random.integers(0, VOCABULARY, (6, extra))
  return Prompts(
    jnp.asarray(np.concatenate([padding, tokens], axis=1)),
    jnp.asarray(np.concatenate([np.zeros((6, extra), bool), mask], axis=1)),
  )


def next_logits(params, tokens):
  """The network in NumPy, on one row without padding: logits after each token, [T, V]."""
  states = [np.zeros(WIDTH)]
  for token in tokens:
    states.append(np.tanh(params['embedding'][token] + states[-1] @ params['recurrent']))
  return np.stack(states[1:]) @ params['head']


def teacher_forced(mixture, prompts, responses):
  """log pi of each response token [B, K, T], every row run alone and without padding."""
  params, prompts, responses = jax.tree.map(np.asarray, (PARAMS, prompts, responses))
  out = np.zeros(responses.tokens.shape)
  for row, sample in np.ndindex(out.shape[:2]):
    prompt = prompts.tokens[row][prompts.mask[row]]
    response = responses.tokens[row, sample][responses.mask[row, sample]]
    tokens = np.concatenate([prompt, response])
    mixed = sum(weight * next_logits(params[slot], tokens) for slot, weight in mixture.items())
    log_p = log_softmax(mixed[len(prompt) - 1 : -1], axis=1)
    out[row, sample, : len(response)] = log_p[np.arange(len(response)), response]
  return out


@pytest.mark.parametrize('drafts', [1, 3])
def test_rollout_without_cache_equals_teacher_forcing(drafts, monkeypatch):
  monkeypatch.setattr(sampler, 'default_draft_length', lambda: drafts)
  prompts = some_prompts()
  rollout = make_rollout(DECODER, [POLICY, MIXTURE], length=LENGTH, stop=STOP, count=2)
  for mixture, responses in zip(
    [POLICY, MIXTURE], rollout(PARAMS, prompts, jax.random.key(0)), strict=True
  ):
    assert 0.3 < np.mean(responses.mask) < 1  # some stop early, some are cut
    expected = teacher_forced(mixture, prompts, responses)
    np.testing.assert_allclose(responses.log_probs, expected, atol=1e-5)


def test_scores_without_cache_ignore_padding():
  rollout = make_rollout(DECODER, [POLICY], length=LENGTH, stop=STOP, count=2)
  (responses,) = rollout(PARAMS, some_prompts(), jax.random.key(1))
  longer = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 2))), responses)
  for prompts, padded in ((some_prompts(), responses), (some_prompts(extra=3), longer)):
    scores = log_probs(DECODER, PARAMS['policy'], prompts, padded)
    np.testing.assert_allclose(scores[..., :LENGTH], responses.log_probs, atol=1e-5)
    assert np.all(scores[..., LENGTH:] == 0)
