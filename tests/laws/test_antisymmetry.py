"""Every judge is antisymmetric, finds a response equal to itself, and judges each pair alone."""

from functools import partial

import jax
import numpy as np
import pytest

from nlhf_jax.data import synthetic, tokenizers
from nlhf_jax.models.transformer import Architecture, make_decoder
from nlhf_jax.preferences import judges
from nlhf_jax.preferences.networks import make_preference_network
from nlhf_jax.structs import Comparison, Responses

POSTS = [
  'so baker well sold um clock at harbour around monday anyway',
  'honestly at school nurse lost basically violin around noon',
]
TOKENIZER = tokenizers.train(POSTS, 300)


def _responses(ids):
  """Rows of ids for two prompts, as many a prompt, in no more places than they need."""
  padded = tokenizers.pad_responses(TOKENIZER, ids, max(len(row) for row in ids))
  return Responses(*(leaf.reshape(2, -1, leaf.shape[-1]) for leaf in padded[:2]))


def _comparison():
  """Two prompts, two summaries of either on the left, three others on the right."""
  told = [synthetic.facts(post) for post in POSTS]
  less = [{kind: word for kind, word in facts.items() if kind != 'who'} for facts in told]
  left = [synthetic.summarise(facts, style) for facts in told for style in ('report', 'list')]
  right = [synthetic.summarise(facts, style) for facts in less for style in synthetic.STYLES]
  posts = tokenizers.prompt_ids(TOKENIZER, POSTS)
  prompts = tokenizers.pad_prompts(TOKENIZER, posts, max(len(row) for row in posts))
  left, right = (_responses(tokenizers.response_ids(TOKENIZER, side)) for side in (left, right))
  return Comparison(prompts, left, right)


COMPARISON = _comparison()


def _arbitrary(comparison):
  """A payoff that depends on everything, unevenly, and on the order."""
  of_prompt, of_left, of_right = (
    np.sum(part.tokens * part.mask, axis=-1, dtype=float)
    for part in (comparison.prompts, comparison.left, comparison.right)
  )
  return np.sin(of_prompt[:, None, None] + 0.3 * of_left[:, :, None] - 0.7 * of_right[:, None])


def _learned():
  sizes = Architecture(
    vocabulary=len(TOKENIZER), width=8, layers=1, heads=2, key_heads=1, head_size=4, hidden=16
  )
  decoder = make_decoder(sizes)
  network = make_preference_network(decoder, sizes.width, TOKENIZER.sep_token_id)
  keys = jax.random.split(jax.random.key(0), 3)
  # The readouts start at zero, where any network is antisymmetric.
  token, verdict = (jax.random.normal(key, (sizes.width,)) for key in keys[:2])
  params = network.init(decoder.init(keys[2])) | {'token': token, 'verdict': verdict}
  return partial(judges.make_payoff(network), params)


def _first_place_counts(posts, left, right):
  """The raters of the embedded task, half of whose votes go to what they read first."""
  return 0.5 + 0.5 * synthetic.preference(posts, left, right)


JUDGES = {
  'antisymmetric': judges.antisymmetric(_arbitrary),
  'make_payoff': _learned(),
  'of_texts': judges.of_texts(_first_place_counts, TOKENIZER),
}


@pytest.fixture(params=JUDGES)
def judge(request):
  return JUDGES[request.param]


def test_swapping_the_sides_changes_the_sign(judge):
  payoff = judge(COMPARISON)
  swapped = judge(COMPARISON._replace(left=COMPARISON.right, right=COMPARISON.left))
  assert payoff.shape == (2, 2, 3)
  assert np.std(payoff) > 0.01
  np.testing.assert_allclose(swapped, -np.swapaxes(payoff, 1, 2), atol=1e-6)


def test_a_response_ties_with_itself_and_the_sides_of_one_batch_are_opposite(judge):
  payoff = np.array(judge(COMPARISON._replace(left=COMPARISON.right)))
  np.testing.assert_array_equal(payoff, -np.swapaxes(payoff, 1, 2))
  np.testing.assert_array_equal(np.diagonal(payoff, axis1=1, axis2=2), 0)


def test_each_pair_is_judged_as_if_alone(judge):
  alone = np.zeros((2, 2, 3))
  for k, j in np.ndindex(2, 3):
    left, right = (
      jax.tree.map(lambda leaf, i=i: leaf[:, i : i + 1], side)
      for side, i in ((COMPARISON.left, k), (COMPARISON.right, j))
    )
    alone[:, k, j] = judge(COMPARISON._replace(left=left, right=right))[:, 0, 0]
  np.testing.assert_allclose(judge(COMPARISON), alone, atol=1e-6)


def test_a_liking_for_the_first_place_leaves_no_trace():
  payoff = judges.of_texts(synthetic.preference, TOKENIZER)(COMPARISON)
  np.testing.assert_allclose(JUDGES['of_texts'](COMPARISON), payoff / 2, atol=1e-12)
