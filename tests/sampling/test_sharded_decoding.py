"""Shards of a mesh decode on their own, and their batches shrink as responses end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.data.batches import map_chunks
from nlhf_jax.models import sharding
from nlhf_jax.sampling import sampler, sharded_decoding
from nlhf_jax.sampling.refill import QUEUE, chunk_sampler
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.sampling.token import UNFILTERED
from nlhf_jax.structs import Prompts
from tests.laws.test_mixtures import BIGRAM
from tests.sampling import shards


def test_numbers_are_those_of_the_whole_batch():
  keys = jax.random.split(jax.random.key(5), 4)
  prompts, steps = jnp.array([5, 0, 6, 6]), jnp.array([1, 4, 4, 9])
  numbers = sharded_decoding.uniform_numbers(keys, prompts, steps, (3, 2))
  for row, (key, prompt, step) in enumerate(zip(keys, prompts, steps, strict=True)):
    whole = jax.random.uniform(jax.random.fold_in(key, step), (7, 3, 2))
    np.testing.assert_array_equal(numbers[row], whole[prompt])


@pytest.mark.parametrize(
  ('length', 'count', 'split', 'expected'),
  [
    (512, 128, 8, (16, 8, 4, 2)),
    (512, 128, 2, (64, 32, 16, 8, 4)),
    (512, 24, 8, (3,)),
    (sampler.FIRST_ROOM, 128, 8, (16,)),
  ],
)
def test_batches_are_halved(length, count, split, expected):
  settings = sampler.make_sampler(shards.COUNTDOWN, [{'policy': 1.0}], length, 0, 1, UNFILTERED)
  assert sharded_decoding.batch_sizes(settings, count, split) == expected


def test_row_steps_and_tokens_of_a_shard(monkeypatch):
  monkeypatch.setattr(sampler, 'FIRST_ROOM', 8)
  monkeypatch.setattr(sampler, 'MIN_BATCH', 2)
  lengths = np.array([3, 30, 1, 5, 12, 4, 2, 6])
  with jax.set_mesh(sharding.make_mesh(0, 1, 1)):
    if jax.device_count() == 1:
      # Of eight until four are left, of four until two are, and of two to the end.
      assert shards.row_steps(lengths, 32) == [8 * 3 + 4 * (5 - 3) + 2 * (29 - 5)]
    rollout = make_rollout(shards.COUNTDOWN, [{'policy': 1.0}], length=32, stop=0)
    (responses,) = rollout({'policy': {}}, shards.prompts_of(lengths), jax.random.key(0))
  np.testing.assert_array_equal(responses.mask.sum(axis=-1)[:, 0], lengths)
  expected = np.maximum(lengths[:, None] - 1 - np.arange(32), 0)
  np.testing.assert_array_equal(responses.tokens[:, 0], expected)


def test_refilled_slots_change_no_response():
  """Each prompt has the response that it has in its batch, of 8 prompts, without a mesh."""
  tokens = jnp.asarray(np.random.default_rng(2).integers(1, 7, (21, 1)))
  prompts = Prompts(tokens, jnp.ones_like(tokens, bool))
  tables = {slot: jax.random.normal(jax.random.key(seed), (7, 7)) for seed, slot in enumerate('ab')}
  rollout = make_rollout(BIGRAM, [{'a': 1.0}, {'a': 0.5, 'b': 0.5}], length=12, stop=0, count=2)

  def sample():
    sampler, size = chunk_sampler(rollout, tables, jax.random.key(1), 21, 8)
    return size, map_chunks(sampler, prompts, size)

  size, expected = sample()
  assert size == 8
  with jax.set_mesh(sharding.make_mesh(0, 1, 1)):
    size, refilled = sample()
  assert size == QUEUE * 8
  lengths = expected[0].mask.sum(axis=-1)
  assert len(np.unique(lengths)) > 5
  for one, other in zip(refilled, expected, strict=True):
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-6)


@pytest.mark.slow
def test_row_steps_of_an_accepted_token_on_eight_shards():
  figures = shards.outcome()
  # Until the last response ends, as a loop of all shards decodes.
  assert figures['together'] > 5
  assert figures['shrinking'] <= 2.1
  assert figures['refilled'] <= 1.7
