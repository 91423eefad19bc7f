"""Responses that were cut lose to those that ended, antisymmetrically."""

import jax.numpy as jnp
import numpy as np

from nlhf_jax.judges.unfinished import PENALTY, has_ended, unfinished_costs, unfinished_loses
from nlhf_jax.structs import Comparison, Responses

STOP = 1
# The second response ends, then has padding that looks like a stop; the third is cut.
TOKENS = np.array([[[5, 6, STOP], [5, STOP, STOP], [5, 6, 7], [8, 8, 8]]])
MASK = np.array([[[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]]], bool)
RESPONSES = Responses(TOKENS, MASK)
PREFERENCE = np.array([[[0, 0.1, -0.2, 0.3], [-0.1, 0, 0.4, np.nan], [0.2, -0.4, 0, 0.25]]])


def test_a_response_has_ended_if_it_holds_the_stop_token():
  np.testing.assert_array_equal(has_ended(RESPONSES, STOP), [[True, True, False, False]])
  unpadded = Responses(np.array([[[5, STOP]]]), np.array([[[True, False]]]))
  assert not has_ended(unpadded, STOP).any()  # padding is no stop token


def test_a_cut_response_loses_to_one_that_ended():
  left = Responses(TOKENS[:, :3], MASK[:, :3])
  judge = unfinished_loses(lambda comparison: jnp.asarray(PREFERENCE), STOP)
  payoff = judge(Comparison(None, left, RESPONSES))
  np.testing.assert_allclose(
    payoff, [[[0, 0.1, 0.5, 0.5], [-0.1, 0, 0.5, 0.5], [-0.5, -0.5, 0, 0.25]]], rtol=1e-6
  )


def test_a_cut_response_has_less_reward():
  left = Responses(TOKENS[:, :3], MASK[:, :3])
  judge = unfinished_costs(lambda comparison: jnp.full((1, 3, 4), 2.0), STOP)
  payoff = judge(Comparison(None, left, RESPONSES)) - 2
  lead = [[0, 0, PENALTY, PENALTY], [0, 0, PENALTY, PENALTY], [-PENALTY, -PENALTY, 0, 0]]
  np.testing.assert_allclose(payoff, [lead], rtol=1e-6)


def test_the_payoff_stays_antisymmetric():
  random = np.random.default_rng(0)
  tokens = random.integers(0, 4, (6, 5, 3))
  responses = Responses(tokens, np.ones(tokens.shape, bool))
  upper = np.triu(random.uniform(-0.5, 0.5, (6, 5, 5)), 1)
  judge = unfinished_loses(lambda comparison: jnp.asarray(upper - upper.swapaxes(1, 2)), STOP)
  payoff = np.asarray(judge(Comparison(None, responses, responses)))
  np.testing.assert_array_equal(payoff, -payoff.swapaxes(1, 2))
  ended = np.asarray(has_ended(responses, STOP))
  assert 0.2 < ended.mean() < 0.8
  np.testing.assert_array_equal(payoff[ended[:, :, None] & ~ended[:, None, :]], 0.5)
