"""Accepted and replaced drafts have the distribution of the target."""

import jax
import jax.numpy as jnp
import numpy as np

from nlhf_jax.sampling import speculative
from tests.sampling.expected import ROWS, assert_frequencies


def test_accepted_drafts_have_the_target_distribution():
  """The first draft is accepted with probability sum(min(p, q)), the second only after it."""
  draft, target = np.log([[0.5, 0.3, 0.2]] * 2), np.log([[0.2, 0.3, 0.5]] * 2)
  keys = jax.random.split(jax.random.key(0), 2)
  tokens = jax.random.categorical(keys[0], draft, shape=(ROWS, 2))
  tile = lambda x: jnp.tile(jnp.asarray(x, jnp.float32), (ROWS, 1, 1))
  uniform = jax.random.uniform(keys[1], (ROWS, 3))
  sampled, count = jax.jit(speculative.accept)(tokens, tile(draft), tile(target), uniform)
  assert_frequencies(np.bincount(sampled.token[:, 0], minlength=3), np.exp(target[0]))
  accepted = 0.2 + 0.3 + 0.2
  assert_frequencies(np.bincount(count - 1, minlength=2), [1 - accepted, accepted])
  second = sampled.token[:, 1][count == 2]
  assert_frequencies(np.bincount(second, minlength=3), np.exp(target[1]))
  np.testing.assert_allclose(sampled.log_prob, target[0][sampled.token], rtol=1e-5)
  np.testing.assert_allclose(
    sampled.entropy, -np.sum(np.exp(target) * target, axis=1)[0], rtol=1e-5
  )


def test_draft_from_the_target_is_accepted():
  logits = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (ROWS, 3, 7)))
  tokens = jax.random.categorical(jax.random.key(1), logits)
  uniform = jax.random.uniform(jax.random.key(2), (ROWS, 4))
  sampled, count = jax.jit(speculative.accept)(tokens, logits, logits, uniform)
  np.testing.assert_array_equal(sampled.token, tokens)
  assert np.all(count == 3)
