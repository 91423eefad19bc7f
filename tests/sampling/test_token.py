"""A token is sampled from the filtered distribution, and never an impossible one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.sampling import token
from tests.sampling.expected import FILTERS, ROWS, assert_frequencies, filter_row

SAMPLE = jax.jit(token.sample_token)
CHANCES = np.array([0, 0.5, 0, 0.3, 0.2, 0], np.float32)


@pytest.mark.parametrize('name', FILTERS)
def test_filters_keep_the_most_likely_tokens(name):
  logits = 2 * np.random.default_rng(1).normal(size=(50, 7)).astype(np.float32)
  expected = [filter_row(row, FILTERS[name]) for row in logits]
  np.testing.assert_allclose(
    token.filter_logits(jnp.asarray(logits), FILTERS[name]), expected, atol=1e-5
  )


@pytest.mark.parametrize('symbols', [6, 64, 1_000])
def test_token_frequencies_equal_their_probabilities(symbols):
  chances = np.resize(CHANCES, symbols)
  chances = chances / chances.sum()
  with np.errstate(divide='ignore'):
    logits = np.log(chances) + 3
  sampled = SAMPLE(jax.random.uniform(jax.random.key(0), (ROWS,)), jnp.tile(logits, (ROWS, 1)))
  assert_frequencies(np.bincount(sampled.token, minlength=symbols), chances)
  np.testing.assert_allclose(np.exp(sampled.log_prob), chances[sampled.token], rtol=1e-5)
  some = chances[chances > 0]
  np.testing.assert_allclose(sampled.entropy, -np.sum(some * np.log(some)), rtol=1e-5)


@pytest.mark.parametrize(
  ('symbols', 'numbers'), [(6, 2_000), (66, 2_000), (300, 2_000), (30_000, 100)]
)
def test_impossible_tokens_are_never_sampled(symbols, numbers):
  below_one = np.nextafter(np.float32(1), np.float32(0))
  spread = np.tile(CHANCES, symbols // len(CHANCES))
  last = np.flatnonzero(spread)[-1]
  uniform = np.linspace(0, 1, numbers, endpoint=False, dtype=np.float32)
  uniform = np.concatenate([uniform, [below_one]])
  for scale in (1, 1.9, 0.3, 1e-3):  # rounding depends on the sum
    logits = np.tile(np.log(np.maximum(spread * scale, 1e-38)), (len(uniform), 1))
    logits[:, spread == 0] = -np.inf
    sampled = SAMPLE(jnp.asarray(uniform), jnp.asarray(logits, jnp.float32))
    assert np.all(spread[sampled.token] > 0)
    assert np.all(np.diff(sampled.token) >= 0)
    assert (sampled.token[0], sampled.token[-1]) == (1, last)
