"""What a token of a long response counts in the word of a network."""

import jax
import numpy as np
import pytest

from nlhf_jax.judges.networks import (
  PLAIN_SUM_TOKENS,
  make_general_preference_network,
  make_preference_network,
  make_reward_network,
)
from nlhf_jax.structs import Comparison, Prompts, Responses
from tests.laws import tiny

VOCABULARY, SEPARATOR = 11, 1
DECODER = tiny.decoder(VOCABULARY)
TOKENS = np.random.default_rng(0).integers(2, VOCABULARY, (2, 3, 1, 5), np.int32)
LEFT, RIGHT = (Responses(side, np.ones_like(side, bool)) for side in TOKENS)
PROMPT = np.full((3, 2), 4, np.int32)
COMPARISON = Comparison(Prompts(PROMPT, np.ones_like(PROMPT, bool)), LEFT, RIGHT)


def reward(params, longest):
  score = make_reward_network(DECODER, tiny.WIDTH, SEPARATOR, longest).score(params, COMPARISON)
  return score.left - score.right


def preference(params, longest):
  network = make_preference_network(DECODER, tiny.WIDTH, SEPARATOR, longest)
  return network.logit(params, COMPARISON)


def embedding(params, longest):
  network = make_general_preference_network(
    DECODER, tiny.WIDTH, SEPARATOR, longest, planes=1, key=jax.random.key(0)
  )
  return network.logit(params, COMPARISON)


@pytest.mark.parametrize(
  ('say', 'shape', 'power'), [(reward, (), 1), (preference, (), 1), (embedding, (2,), 2)]
)
def test_tokens_of_long_responses_count_less_and_the_verdict_as_much(say, shape, power):
  drawn = jax.random.normal(jax.random.key(1), (tiny.WIDTH, *shape))
  backbone = tiny.parameters(DECODER, 0)
  tokens = {'backbone': backbone, 'token': drawn, 'verdict': np.zeros_like(drawn)}
  verdict = tokens | {'token': np.zeros_like(drawn), 'verdict': drawn}
  plain = say(tokens, PLAIN_SUM_TOKENS)
  assert np.abs(plain).max() > 0.1
  np.testing.assert_array_equal(say(tokens, 5), plain)
  np.testing.assert_allclose(say(tokens, 4 * PLAIN_SUM_TOKENS) * 4**power, plain, rtol=1e-5)
  np.testing.assert_array_equal(say(verdict, 4 * PLAIN_SUM_TOKENS), say(verdict, PLAIN_SUM_TOKENS))
