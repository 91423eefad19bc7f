"""Every judge is antisymmetric, ties a response with itself, and judges each pair by itself."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from nlhf_jax.data import tokenizers
from nlhf_jax.judges import lengths
from nlhf_jax.judges.gpm import make_general_preference_network
from nlhf_jax.judges.judge import (
  antisymmetric,
  judge_from_embeddings,
  judge_from_network,
  judge_from_rewards,
  judge_from_texts,
)
from nlhf_jax.judges.learned import make_preference_network
from nlhf_jax.judges.reward import make_reward_network
from nlhf_jax.structs import Comparison, Responses
from nlhf_jax.tasks.summaries import generator
from tests.laws import tiny

POSTS = [
  'so baker well sold um clock at harbour around monday anyway',
  'honestly at school nurse lost basically violin around noon',
]
TOKENIZER = tokenizers.train(POSTS, 300)


FACTS = [generator.key_facts(post) for post in POSTS]
FEWER = [{kind: word for kind, word in facts.items() if kind != 'who'} for facts in FACTS]


def _summaries(facts, styles):
  return [[generator.write_summary(of_post, style) for style in styles] for of_post in facts]


# Left responses to the first post have more facts than the right ones, to the second post fewer.
LEFT = _summaries([FACTS[0], FEWER[1]], ('report', 'list'))
RIGHT = _summaries([FEWER[0], FACTS[1]], generator.STYLES)


def _responses(summaries):
  """Responses to both prompts, padded to the longest."""
  ids = tokenizers.response_ids(TOKENIZER, np.ravel(summaries).tolist())
  padded = tokenizers.pad_responses(TOKENIZER, ids, max(len(row) for row in ids))
  return Responses(*(leaf.reshape(len(POSTS), -1, leaf.shape[-1]) for leaf in padded[:2]))


def _comparison():
  ids = tokenizers.prompt_ids(TOKENIZER, POSTS)
  prompts = tokenizers.pad_prompts(TOKENIZER, ids, max(len(row) for row in ids))
  return Comparison(prompts, _responses(LEFT), _responses(RIGHT))


COMPARISON = _comparison()


def _arbitrary(comparison):
  """A payoff that depends on all three texts and on the order."""
  of_prompt, of_left, of_right = (
    np.sum(part.tokens * part.mask, axis=-1, dtype=float)
    for part in (comparison.prompts, comparison.left, comparison.right)
  )
  return np.sin(of_prompt[:, None, None] + 0.3 * of_left[:, :, None] - 0.7 * of_right[:, None])


def _trained(make_network, make_judge):
  decoder = tiny.decoder(len(TOKENIZER))
  network = make_network(decoder, tiny.WIDTH, TOKENIZER.sep_token_id)
  params, random = network.init(tiny.parameters(decoder, 1)), np.random.default_rng(0)
  # With readouts of zero any network is antisymmetric; with large ones its sigmoid saturates.
  for readout in ('token', 'verdict'):
    params[readout] = random.normal(size=params[readout].shape).astype(np.float32) / 5
  return tiny.jit(make_judge(network, params))


def _prefer_first_place(posts, left, right):
  """The raters of the embedded task, half of whose votes go to the response shown first."""
  return 0.5 + 0.5 * generator.preference(posts, left, right)


JUDGES = {
  'antisymmetric': antisymmetric(_arbitrary),
  'learned': _trained(make_preference_network, judge_from_network),
  'reward': _trained(make_reward_network, judge_from_rewards),
  'gpm': _trained(
    partial(make_general_preference_network, planes=2, key=jax.random.key(0)), judge_from_embeddings
  ),
  'texts': judge_from_texts(_prefer_first_place, TOKENIZER),
  'lengths': lengths.KIND.make({}, Path(), lambda: False).make_judge(TOKENIZER),
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


def test_a_response_ties_with_itself(judge):
  payoff = np.array(judge(COMPARISON._replace(left=COMPARISON.right)))
  np.testing.assert_array_equal(payoff, -np.swapaxes(payoff, 1, 2))
  np.testing.assert_array_equal(np.diagonal(payoff, axis1=1, axis2=2), 0)


def test_other_pairs_do_not_change_a_payoff(judge):
  alone = np.zeros((2, 2, 3))
  for k, j in np.ndindex(2, 3):
    left, right = (
      jax.tree.map(lambda leaf, i=i: leaf[:, i : i + 1], side)
      for side, i in ((COMPARISON.left, k), (COMPARISON.right, j))
    )
    alone[:, k, j] = judge(COMPARISON._replace(left=left, right=right))[:, 0, 0]
  np.testing.assert_allclose(judge(COMPARISON), alone, atol=1e-6)


def test_antisymmetric_leaves_judges_unchanged(judge):
  again = antisymmetric(judge)
  np.testing.assert_allclose(again(COMPARISON), judge(COMPARISON), atol=1e-6)


def test_position_bias_cancels():
  payoff = JUDGES['texts'](COMPARISON)
  for b, k, j in np.ndindex(payoff.shape):
    chance = generator.preference([POSTS[b]], [LEFT[b][k]], [RIGHT[b][j]])
    np.testing.assert_allclose(payoff[b, k, j], (chance[0] - 0.5) / 2, atol=1e-12)
