"""The task of asking in words has the payoffs of its game, and a corpus of whole conversations."""

import itertools

import numpy as np
import pytest

from nlhf_jax.data import dialogue_texts, tokenizers
from nlhf_jax.data.chat_templates import SPACED_TURNS
from nlhf_jax.errors import UserError
from nlhf_jax.structs import Prompts, Responses
from nlhf_jax.tasks import clarify, clarify_corpus
from nlhf_jax.tasks.clarify_corpus import ASK, DAYS, STATED, TOLD, WITHOUT
from nlhf_jax.tasks.summaries.corpus import SyntheticData

POSTS = [
  next(post for post in clarify_corpus.posts(0) if post.endswith(end)) for end in ('day', DAYS[2])
]
CHANCES = np.array([clarify_corpus.day_chances(post) for post in POSTS])
ANSWERS = [STATED.format(day) for day in DAYS]


def conversations(task):
  """Every conversation that the game has, as turns and as its tokens there."""
  for fact, text in enumerate(ANSWERS):
    yield (text,), (fact, 0, 0)
  yield (WITHOUT,), (task.without, 0, 0)
  for fact, second in itertools.product(range(4), range(5)):
    turns = ASK, TOLD.format(DAYS[fact]), [*ANSWERS, WITHOUT][second]
    yield turns, (task.ask, fact, second)


def test_raters_of_texts_are_those_of_the_game():
  task = clarify.make_clarify_task(CHANCES)
  turns, tokens = zip(*conversations(task), strict=True)
  texts = list(map(clarify_corpus.transcript, turns))
  indices = [(first * len(DAYS) + told) * task.vocabulary + last for first, told, last in tokens]
  left, right = zip(*itertools.product(texts, texts), strict=True)
  for post, text in enumerate(POSTS):
    found = clarify_corpus.preference([text] * len(left), left, right) - 0.5
    expected = task.payoff[post][np.ix_(indices, indices)]
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-12)


@pytest.mark.parametrize(
  'text',
  ['', 'it is on', ASK, f'{ASK}\n\nUser: on monday', 'it is on friday .', f'{WITHOUT} {WITHOUT}'],
)
def test_raters_mind_other_texts_most(text):
  worst = clarify_corpus.transcript((ASK, TOLD.format(DAYS[0]), ANSWERS[1]))
  (chance,) = clarify_corpus.preference(POSTS[:1], [text], [worst])
  assert chance == 0


def test_user_tells_days_by_their_chances():
  asked = [{'role': 'user', 'content': POSTS[1]}, {'role': 'assistant', 'content': f' {ASK}'}]
  told = clarify_corpus.tell([asked] * 400, range(400))
  share = told.count(TOLD.format(DAYS[2])) / 400
  assert abs(share - 0.85) < 5 * np.sqrt(0.85 * 0.15 / 400)
  assert clarify_corpus.tell([[asked[0], {'content': WITHOUT}]], [0]) == [None]


def test_exploitability_is_that_of_the_cycle():
  talk = {'asks': clarify_corpus.transcript((ASK, TOLD.format(DAYS[2]), ANSWERS[2]))}
  texts = talk | {'without': WITHOUT, 'guesses': ANSWERS[2], 'mumbles': 'it is'}
  records = [{'prompt': post, 'responses': texts} for post in POSTS]
  found = clarify_corpus.measure(records)
  assert found['asks without a hint'] == {'asks': 1, 'without': 0, 'guesses': 0, 'mumbles': 0}
  # Guessing beats asking, asking an answer without the day, and that a guess.
  expected = {'asks': 5 / 24, 'without': 1 / 6, 'guesses': 1 / 12, 'mumbles': 1 / 2}
  assert found['exploitability without a hint'] == pytest.approx(expected)
  # A likely day is best stated, and no conversation beats that.
  assert found['exploitability with a hint']['guesses'] == pytest.approx(0, abs=1e-12)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  data = SyntheticData(40, 10, 32, 8, 512)
  return clarify_corpus.make_clarify_corpus(data, 0, '', tmp_path_factory.mktemp('data'))


def test_prompts_are_posts_and_demonstrations_have_both_turns(corpus):
  assert corpus.account['train']['prompts'] == 40
  prompts = corpus.train.prompts.all()
  texts = tokenizers.prompt_texts(corpus.tokenizer, *prompts)
  held_out = tokenizers.prompt_texts(corpus.tokenizer, *corpus.held_out.prompts)
  listed = list(itertools.islice(clarify_corpus.posts(0), 50))
  assert (sorted(texts), sorted(held_out)) == (sorted(listed[:40]), sorted(listed[40:]))
  shown = corpus.train.demonstrations.all()
  answers = tokenizers.response_texts(corpus.tokenizer, *shown.left[:2])
  asked = tokenizers.prompt_texts(corpus.tokenizer, *shown.prompts)
  second = [
    (question, answer)
    for question, answer in zip(asked, answers, strict=True)
    if 'which day ?' in question
  ]
  assert answers.count(ASK) == len(second) > 0
  for question, answer in second:
    assert answer == STATED.format(next(day for day in DAYS if f'on {day}' in question))


def test_comparisons_are_of_conversations_as_they_are_sampled(corpus):
  compared, tokenizer = corpus.train.comparisons.all(), corpus.tokenizer
  (one,) = tokenizers.response_ids(tokenizer, [ASK])
  (reply,) = dialogue_texts.reply_ids(tokenizer, [TOLD.format(DAYS[0])], [False])
  rows = dialogue_texts.conversation_ids(tokenizer, [(ASK, TOLD.format(DAYS[0]), ANSWERS[0])])
  assert rows[0][: len(one) + len(reply)] == [*one, *reply]
  lengths = {int(mask.sum()) for mask in compared.left.mask[:, 0]}
  assert len(lengths) > 1
  assert max(lengths) == len(rows[0])
  turn = np.repeat([1, 0, 2], [len(one), len(reply), len(rows[0]) - len(one) - len(reply)])
  side = Responses(np.array([rows]), np.ones((1, 1, len(turn)), bool), turn=turn[None, None])
  first = Prompts(*(leaf[:1] for leaf in compared.prompts))
  (talk,) = dialogue_texts.messages(tokenizer, first, side)
  assert [message['content'] for message in talk[1:]] == [ASK, 'on monday', ANSWERS[0]]
  (written,) = tokenizers.prompt_ids(tokenizer, [talk[:3] + talk[:1]])
  assert tokenizer.chat_template == SPACED_TURNS
  assert written[-1] == tokenizer.sep_token_id


def test_too_many_posts_and_short_lengths_are_refused(tmp_path):
  make = lambda *data: clarify_corpus.make_clarify_corpus(SyntheticData(*data), 0, '', tmp_path)
  with pytest.raises(UserError, match='has only 14000 posts'):
    make(14000, 10, 32, 8, 512)
  with pytest.raises(UserError, match=r'config.data.prompt_length=16 is too short; .* up to 2'):
    make(40, 10, 16, 8, 512)
  with pytest.raises(UserError, match=r'config\.data\.response_length=5 is too short'):
    make(40, 10, 32, 5, 512)
