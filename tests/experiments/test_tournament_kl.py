"""The KL of a tournament is measured under the sampling distribution of both sides."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from nlhf_jax.experiments.language.tournament_stage import make_log_prob
from nlhf_jax.experiments.start import start
from nlhf_jax.structs import Prompts, Responses
from tests.laws import tiny

VOCABULARY = 7


def test_log_prob_is_that_of_the_tempered_policy():
  random, decoder = np.random.default_rng(0), tiny.decoder(VOCABULARY)
  params = tiny.parameters(decoder, 1)
  tokens = jnp.asarray(random.integers(0, VOCABULARY, (2, 6)), jnp.int32)
  mask = jnp.ones((2, 6), bool).at[1, 5].set(False)
  prompts = Prompts(tokens[:, :3], mask[:, :3])
  side = Responses(tokens[:, None, 3:], mask[:, None, 3:])
  hidden, _ = decoder.prefill(params, tokens, mask)
  expected = log_softmax(np.asarray(decoder.logits(params, hidden)) / 0.3, axis=-1)
  expected = np.take_along_axis(expected[:, 2:5], tokens[:, 3:, None], axis=-1)[..., 0]
  found = make_log_prob(decoder, 0.3)(params, prompts, side)
  np.testing.assert_allclose(found[:, 0], np.where(mask[:, 3:], expected, 0), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  'filters', [{'temperature': 0.3}, {'temperature': 2.0, 'top_k': 3}, {'top_k': 1}, {'top_p': 0.5}]
)
def test_reference_is_at_distance_zero_under_all_filters(filters, toy_run, tmp_path):
  config, folder = toy_run.copy_to(tmp_path)
  config.tournament.filters.update(filters)
  start(config, 'nash_md', folder / 'other', folder / 'stages')
  results = json.loads((folder / 'other' / 'results.json').read_text())
  assert results['kl_to_reference']['sft'] == 0
  others = [value for name, value in results['kl_to_reference'].items() if name != 'sft']
  assert all(0 < abs(value) < 5 for value in others)  # two small steps from the reference
