"""The weight of single tokens in the output of a network, for short and for long responses."""

import jax
import numpy as np
import pytest

from nlhf_jax.judges.gpm import make_general_preference_network
from nlhf_jax.judges.learned import make_preference_network
from nlhf_jax.judges.networks import PLAIN_SUM_TOKENS
from nlhf_jax.judges.reward import make_reward_network
from nlhf_jax.structs import Comparison, Prompts, Responses
from tests.laws import tiny

VOCABULARY, SEPARATOR = 11, 1
DECODER = tiny.decoder(VOCABULARY)
TOKENS = np.random.default_rng(0).integers(2, VOCABULARY, (2, 3, 1, 5), np.int32)
LEFT, RIGHT = (Responses(side, np.ones_like(side, bool)) for side in TOKENS)
PROMPT = np.full((3, 2), 4, np.int32)
COMPARISON = Comparison(Prompts(PROMPT, np.ones_like(PROMPT, bool)), LEFT, RIGHT)


def reward(params, length):
  score = make_reward_network(DECODER, tiny.WIDTH, SEPARATOR, length).score(params, COMPARISON)
  return score.left - score.right


def preference(params, length):
  network = make_preference_network(DECODER, tiny.WIDTH, SEPARATOR, length)
  return network.logit(params, COMPARISON)


def general_preference(params, length):
  network = make_general_preference_network(
    DECODER, tiny.WIDTH, SEPARATOR, length, planes=1, key=jax.random.key(0)
  )
  return network.logit(params, COMPARISON)


@pytest.mark.parametrize(
  ('compute', 'shape', 'power'),
  [(reward, (), 1), (preference, (), 1), (general_preference, (2,), 2)],
)
def test_only_the_token_readout_is_scaled_by_length(compute, shape, power):
  readout = jax.random.normal(jax.random.key(1), (tiny.WIDTH, *shape))
  backbone = tiny.parameters(DECODER, 0)
  tokens = {'backbone': backbone, 'token': readout, 'verdict': np.zeros_like(readout)}
  last = tokens | {'token': np.zeros_like(readout), 'verdict': readout}
  plain = compute(tokens, PLAIN_SUM_TOKENS)
  assert np.abs(plain).max() > 0.1
  np.testing.assert_array_equal(compute(tokens, 5), plain)
  np.testing.assert_allclose(compute(tokens, 4 * PLAIN_SUM_TOKENS) * 4**power, plain, rtol=1e-5)
  np.testing.assert_array_equal(
    compute(last, 4 * PLAIN_SUM_TOKENS), compute(last, PLAIN_SUM_TOKENS)
  )
