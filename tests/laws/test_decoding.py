"""Law: cached decoding equals teacher forcing, for one slot and for two."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax import compilation
from nlhf_jax.models import architectures
from nlhf_jax.models.scoring import log_probs
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.sampling import sampler
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.structs import Prompts

STOP, LENGTH = 2, 7
SIZES = architectures.small(
  vocabulary=11, width=32, layers=2, heads=4, key_heads=2, head_size=8, hidden=48, rotary_base=1e4
)
POLICY = {'policy': 1.0}
MIXTURE = {'policy': 0.7, 'reference': 0.3}


@pytest.fixture(scope='module')
def decoder():
  return make_decoder(SIZES)


@pytest.fixture(scope='module')
def params(decoder):
  init = jax.jit(decoder.init)
  # Twice the initial scale, so that the two slots differ.
  return {
    slot: jax.tree.map(lambda leaf: 2 * leaf, init(jax.random.key(seed)))
    for seed, slot in enumerate(('policy', 'reference'))
  }


@pytest.fixture(scope='module')
def prompts():
  random = np.random.default_rng(0)
  mask = np.arange(6) >= 6 - np.array([6, 1, 3, 5, 2])[:, None]
  return Prompts(jnp.asarray(random.integers(3, 11, mask.shape)), jnp.asarray(mask))


def teacher_forced(decoder, params, mixture, prompts, responses):
  """Log-probabilities [B, K, T, V] of the mixture, each response computed without a cache."""
  size, count, length = responses.tokens.shape
  forced = np.zeros((size, count, length, SIZES.vocabulary))
  for row, sample in itertools.product(range(size), range(count)):
    prompt = prompts.tokens[row][prompts.mask[row]]
    tokens = jnp.concatenate([prompt, responses.tokens[row, sample]])[None]
    for slot, weight in mixture.items():
      hidden, _ = decoder.prefill(params[slot], tokens, jnp.ones_like(tokens, bool))
      logits = decoder.logits(params[slot], hidden[0, len(prompt) - 1 : -1])
      forced[row, sample] += weight * np.asarray(logits)
  return np.asarray(jax.nn.log_softmax(forced))


@pytest.mark.parametrize('drafts', [1, pytest.param(3, marks=pytest.mark.slow)])
def test_rollout_log_probs_equal_teacher_forcing(decoder, params, prompts, drafts, monkeypatch):
  opposite, beyond = {'policy': 0.2, 'reference': 0.8}, {'policy': 1.5, 'reference': -0.5}
  mixtures = [POLICY, MIXTURE, opposite, beyond] if drafts == 1 else [MIXTURE, opposite, beyond]
  monkeypatch.setattr(sampler, 'default_draft_length', lambda: drafts)
  rollout = make_rollout(decoder, mixtures, length=LENGTH, stop=STOP, count=2)
  sampled = rollout(params, prompts, jax.random.key(3))
  for mixture, responses in zip(mixtures, sampled, strict=True):
    mask = np.asarray(responses.mask)
    forced = teacher_forced(decoder, params, mixture, prompts, responses)
    chosen = np.take_along_axis(forced, np.asarray(responses.tokens)[..., None], axis=-1)[..., 0]
    entropy = -(np.exp(forced) * forced).sum(axis=-1)
    atol = 1e-5 * sum(map(abs, mixture.values()))  # rounding errors are weighted like logits
    np.testing.assert_allclose(responses.log_probs, np.where(mask, chosen, 0), atol=atol)
    np.testing.assert_allclose(responses.entropy, np.where(mask, entropy, 0), atol=atol)
    assert 0.2 < mask.mean() < 1  # some responses stop early, some are truncated


def test_scores_of_a_rollout_equal_its_log_probs(decoder, params, prompts):
  rollout = make_rollout(decoder, [POLICY], length=LENGTH, stop=STOP, count=3)
  (responses,) = rollout(params, prompts, jax.random.key(4))
  scored = jax.jit(partial(log_probs, decoder))(params['policy'], prompts, responses)
  np.testing.assert_allclose(scored, responses.log_probs, atol=3e-5)


def test_responses_end_with_their_stop_token(decoder, params, prompts):
  rollout = make_rollout(decoder, [MIXTURE], length=LENGTH, stop=STOP, count=8)
  (responses,) = rollout(params, prompts, jax.random.key(5))
  tokens, mask = np.asarray(responses.tokens), np.asarray(responses.mask)
  stops = (tokens == STOP) & mask
  assert (stops.sum(axis=-1) <= 1).all()
  lengths = mask.sum(axis=-1)
  assert (stops.any(axis=-1) | (lengths == LENGTH)).all()
  np.testing.assert_array_equal(mask, np.arange(LENGTH) < lengths[..., None])
  assert (tokens[~mask] == STOP).all()


@pytest.fixture
def counted(decoder):
  """The decoder, and a list of the rows of each decoding step, filled as it runs."""
  steps = []

  def decode(params, tokens, cache):
    jax.debug.callback(lambda: steps.append(len(tokens)))
    return decoder.decode(params, tokens, cache)

  return decoder._replace(decode=decode), steps


def test_loop_ends_when_all_responses_end(counted, params, prompts):
  decoder, steps = counted

  def logits(params, hidden):
    return decoder.logits(params, hidden).at[..., STOP].add(1e4)

  rollout = make_rollout(decoder._replace(logits=logits), [POLICY], length=50, stop=STOP)
  (responses,) = jax.block_until_ready(rollout(params, prompts, jax.random.key(6)))
  jax.effects_barrier()
  assert not steps  # prefill samples the stop tokens
  assert (np.asarray(responses.mask).sum(axis=-1) == 1).all()


@pytest.fixture
def many(decoder):
  """24 prompts, and logits under which responses have about 5 tokens."""

  def logits(params, hidden):
    return decoder.logits(params, hidden).at[..., STOP].add(3)

  tokens = jnp.asarray(np.random.default_rng(1).integers(3, 11, (24, 4)))
  return Prompts(tokens, jnp.ones_like(tokens, bool)), logits


@pytest.mark.parametrize('drafts', [1, pytest.param(3, marks=pytest.mark.slow)])
def test_compaction_and_growing_caches_change_no_token(counted, many, params, drafts, monkeypatch):
  monkeypatch.setattr(sampler, 'default_draft_length', lambda: drafts)
  (decoder, steps), (prompts, logits), key = counted, many, jax.random.key(8)
  stopping = decoder._replace(logits=logits)
  make = lambda: make_rollout(stopping, [POLICY, MIXTURE], length=20, stop=STOP, count=2)
  expected = jax.jit(make())(params, prompts, key)  # in one program, which does not compact
  jax.effects_barrier()
  assert set(steps) == {24 * 2 * 2, 24 * 2}  # the policy is in two mixtures, the reference in one
  steps.clear()
  monkeypatch.setattr(sampler, 'MIN_BATCH', 6)
  monkeypatch.setattr(sampler, 'FIRST_ROOM', 4)
  compacted = make()(params, prompts, key)
  jax.effects_barrier()
  assert set(steps) == {rows * part for rows in (24, 6) for part in (4, 2)}
  for one, other in zip(compacted, expected, strict=True):
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_allclose(one.log_probs, other.log_probs, atol=3e-5)
    np.testing.assert_allclose(one.entropy, other.entropy, atol=3e-5)


def test_few_programs_serve_all_response_lengths(decoder, many, params, monkeypatch):
  monkeypatch.setattr(sampler, 'MIN_BATCH', 6)
  monkeypatch.setattr(sampler, 'FIRST_ROOM', 4)
  prompts, logits = many
  rollout = make_rollout(decoder._replace(logits=logits), [POLICY], length=20, stop=STOP)
  built = []
  for number in range(16):
    jax.block_until_ready(rollout(params, prompts, jax.random.key(number)))
    built.append(compilation.count_programs())
  assert built[5] == built[-1]


def test_responses_of_one_token(decoder, params, prompts):
  rollout = make_rollout(decoder, [POLICY], length=1, stop=STOP, count=3)
  (responses,) = rollout(params, prompts, jax.random.key(9))
  scored = jax.jit(partial(log_probs, decoder))(params['policy'], prompts, responses)
  np.testing.assert_allclose(scored, responses.log_probs, atol=3e-5)
