"""The embedded task has a cycle that no single rater has, and imperfect demonstrations."""

import itertools
from collections import Counter

import numpy as np
import pytest

from nlhf_jax.data import tokenizers
from nlhf_jax.tasks.summaries import generator
from nlhf_jax.tasks.summaries.generator import STYLES
from nlhf_jax.tasks.summaries.styles import perfect_summaries

POST = 'well the baker so sold um clock at harbour around noon okay'
EXAMPLES = list(itertools.islice(generator.post_texts(0), 2000))


def pairs(summaries, post=POST):
  left, right = zip(*itertools.product(summaries, repeat=2), strict=True)
  return [post] * len(left), left, right


def table(function, summaries):
  """`function` of every pair of summaries, [n, n], or by rater, [n, n, 3]."""
  found = function(*pairs(summaries))
  return found.reshape(len(summaries), len(summaries), *found.shape[1:])


@pytest.fixture(scope='module')
def summaries():
  """Perfect, imperfect, unfinished and empty summaries, in every style and in none."""
  of_others = [text for example in EXAMPLES[:20] for text in (example.left, example.right)]
  return [*perfect_summaries(POST), *of_others, 'baker sold clock', '', 'um ' * 20]


def test_perfect_summaries_form_a_cycle():
  chance = table(generator.preference, perfect_summaries(POST))
  for i in range(3):
    assert chance[i, (i + 1) % 3] > 0.55


def test_no_style_of_perfect_summaries_wins_on_average():
  chance = table(generator.preference, perfect_summaries(POST))
  np.testing.assert_allclose(chance.mean(axis=1), 0.5, atol=1e-12)


@pytest.mark.parametrize('rater', range(3))
def test_every_rater_has_a_total_order(rater, summaries):
  chance = table(generator.rater_preferences, summaries)[..., rater]
  # In order of the number of others that each beats, each beats or ties with all after it.
  order = np.argsort(-(chance > 0.5).sum(axis=1), kind='stable')
  ranked = chance[np.ix_(order, order)]
  assert np.all(ranked[np.triu_indices(len(summaries))] >= 0.5)


def test_raters_rank_the_styles_in_three_different_orders():
  chance = table(generator.rater_preferences, perfect_summaries(POST))
  best_first = [tuple(np.argsort(-chance[..., rater].sum(axis=1))) for rater in range(3)]
  assert len(set(best_first)) == 3


@pytest.mark.parametrize('function', [generator.preference, generator.rater_preferences])
def test_preference_is_antisymmetric(function, summaries):
  chance = table(function, summaries)
  np.testing.assert_allclose(chance + chance.swapaxes(0, 1), 1, atol=1e-12)


def test_key_facts_of_a_post_are_found():
  assert generator.key_facts(POST) == {
    'who': 'baker',
    'did': 'sold',
    'what': 'clock',
    'where': 'harbour',
    'when': 'noon',
  }


@pytest.mark.parametrize(
  ('summary', 'expected'),
  [
    ('in short the baker sold the clock at harbour noon .', 1),
    ('key points baker ; sold ; clock ; harbour ; noon', 1),
    ('guess what the baker sold the clock at harbour noon ?', 1),
    ('baker sold clock harbour noon', 1),
    ('key points baker ; sold', 2 / 5),
    ('key points baker ; stole', 0),
    ('key points nurse ; stole ; hat', -3 / 5),
    ('key points baker ; baker', 0),
    ('key points baker ; baker ; baker', -1 / 5),
    ('key points', 0),
    ('in short .', 0),
    ('', 0),
    ('no such words', 0),
    ('key points baker ; sold ; clock ; harbour ; noon okay okay', 1),
    ('key points baker ; sold ; clock ; harbour ; noon okay okay okay', 0),
  ],
)
def test_quality_is_covered_minus_invented_facts(summary, expected):
  assert generator.quality(POST, summary) == pytest.approx(expected)


@pytest.mark.parametrize(
  ('summary', 'style'),
  [
    ('in short the baker .', 'report'),
    ('key points baker', 'list'),
    ('guess what', 'question'),
    ('guess', 'none'),
    ('short in the baker', 'none'),
    ('well key points baker', 'none'),
    ('', 'none'),
  ],
)
def test_the_opening_determines_the_style(summary, style):
  assert generator.find_style(summary) == style


@pytest.mark.parametrize('style', STYLES)
def test_restyling_changes_the_style_and_keeps_the_quality(style):
  plain = ['baker sold clock harbour noon', 'stole', '', 'well okay']
  for example in EXAMPLES[:200]:
    for summary in (example.left, example.right, *plain):
      restyled = generator.restyle(summary, style)
      assert generator.find_style(restyled) == style
      quality = generator.quality(example.post, summary)
      assert generator.quality(example.post, restyled) == pytest.approx(quality)


def test_votes_average_to_the_preference():
  left, right = perfect_summaries(POST)[0], 'key points baker ; sold ; clock ; stole'
  count = 3000
  columns = [[text] * count for text in (POST, left, right)]
  votes = generator.votes(np.random.default_rng(0), *columns)
  assert set(np.round(3 * votes, 9)) <= {0, 1, 2, 3}
  expected = generator.preference([POST], [left], [right])[0]
  assert 0.1 < expected < 0.9
  assert votes.mean() == pytest.approx(expected, abs=4 * 0.5 / np.sqrt(3 * count))


def test_examples_depend_only_on_the_seed():
  again, other = (list(itertools.islice(generator.post_texts(seed), 50)) for seed in (0, 1))
  assert again == EXAMPLES[:50]
  assert other != again


@pytest.mark.parametrize(
  ('facts', 'expected'),
  [
    (
      {},
      ['in short .', 'key points', 'guess what ?'],
    ),
    (
      {'when': 'noon'},
      ['in short noon .', 'key points noon', 'guess what noon ?'],
    ),
    (
      {'did': 'sold', 'who': 'baker', 'where': 'mill'},
      [
        'in short the baker sold at mill .',
        'key points baker ; sold ; mill',
        'guess what the baker sold at mill ?',
      ],
    ),
  ],
)
def test_a_summary_states_the_given_facts(facts, expected):
  assert [generator.write_summary(facts, style) for style in STYLES] == expected


def test_every_post_has_one_fact_of_each_kind():
  for example in EXAMPLES:
    found = [generator.KIND[word] for word in example.post.split() if word in generator.KIND]
    assert sorted(found) == sorted(generator.FACTS)


def test_demonstrations_are_imperfect_and_prefer_some_styles():
  quality = [generator.quality(example.post, example.summary) for example in EXAMPLES]
  assert np.mean(quality) == pytest.approx(0.353, abs=0.03)
  styles = Counter(generator.find_style(example.summary) for example in EXAMPLES)
  for style, share in zip(STYLES, (0.35, 0.40, 0.25), strict=True):
    assert styles[style] / len(EXAMPLES) == pytest.approx(share, abs=0.04)


def test_compared_summaries_cover_styles_and_qualities():
  compared = [(example.post, text) for example in EXAMPLES for text in example[2:]]
  styles = Counter(generator.find_style(text) for _, text in compared)
  for style in STYLES:
    assert styles[style] / len(compared) == pytest.approx(1 / 3, abs=0.03)
  quality = np.array([generator.quality(*pair) for pair in compared])
  assert np.mean(quality == 1) > 0.05
  assert np.mean(quality <= 0) > 0.05


def test_every_word_is_one_token_so_texts_fit():
  tokenizer = tokenizers.train(generator.vocabulary(), 1024)
  posts = [example.post for example in EXAMPLES]
  for texts, encode, length in (
    (posts, tokenizers.prompt_ids, 25),
    ([text for post in posts for text in perfect_summaries(post)], tokenizers.response_ids, 14),
    ([text for example in EXAMPLES for text in example[1:]], tokenizers.response_ids, 14),
  ):
    ids = encode(tokenizer, texts)
    assert [len(row) - 1 for row in ids] == [len(text.split()) for text in texts]
    assert max(map(len, ids)) <= length
