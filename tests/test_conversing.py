"""Conversations with the library: users, judges of whole conversations, training and resuming."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nlhf_jax as nlhf
from nlhf_jax.data import tokenizers
from nlhf_jax.errors import UserError
from nlhf_jax.judges.judge import comparison_texts
from nlhf_jax.judges.unfinished import has_ended
from nlhf_jax.models.decoder import decoder_from_apply
from nlhf_jax.structs import Comparison, Prompts, Responses
from tests.experiments import pretrained

PROMPTS = ['one', 'two'] * 16


@pytest.fixture(scope='module')
def bigrams():
  """A model whose next-token logits depend on the last token alone."""
  tokenizer = tokenizers.train(['one two'], 300)
  decoder = decoder_from_apply(lambda params, tokens: params['table'][tokens], lambda _, h: h)
  ids = lambda text: tokenizer.encode(text, add_special_tokens=False)
  table = np.full((len(tokenizer),) * 2, -9.0, np.float32)
  for word in (' one', ' two', '<sep>'):
    for token in ids(word):
      table[token, [ids(' one')[0], ids(' two')[0], tokenizer.eos_token_id]] = 0
  assert len(ids(' one')) == len(ids(' two')) == 1
  return nlhf.LanguageModel(decoder, {'table': jnp.asarray(table)}, tokenizer)


def echo(conversations, seeds):
  """Says `two` or `one` by chance after `one`, and ends the conversation after anything else."""
  assert all(conversation[-1]['role'] == 'assistant' for conversation in conversations)
  return [
    ('one' if seed % 2 else 'two') if 'one' in conversation[-1]['content'] else None
    for conversation, seed in zip(conversations, seeds, strict=True)
  ]


def longer(prompts, left, right):
  """Prefers the conversation with more turns."""
  return [
    0.5 + 0.5 * np.sign(a.count('User:') - b.count('User:'))
    for a, b in zip(left, right, strict=True)
  ]


DIALOGUE = nlhf.Dialogue(nlhf.user_from_function(echo), turns=3, reply_length=4)


def make(model, algorithm=None, dialogue=DIALOGUE, **settings):
  algorithm = algorithm or nlhf.algorithms.self_play(tau=0.001)
  judge, optimizer = nlhf.judges.from_function(longer), optax.adam(0.3, b1=0.0)
  settings = dict(response_length=2, dialogue=dialogue) | settings
  return nlhf.make_train_step(model, algorithm, judge, optimizer, **settings)


@pytest.mark.slow
def test_policy_learns_to_keep_the_conversation_up_and_resumes_exactly(bigrams):
  train = make(bigrams)
  state = train.init(jax.random.key(0))
  for step in range(12):
    if step == 6:
      stored = jax.tree.map(np.array, state)
    state, metrics = train(state, PROMPTS, jax.random.key(step))
  assert set(metrics) >= {'loss', 'payoff', 'response_length', 'entropy'}
  policy, start = (
    nlhf.converse(bigrams, params, PROMPTS, DIALOGUE, length=2, seed=1)
    for params in (state.slots['policy'], bigrams.params)
  )
  assert np.mean([len(one) for one in policy]) > 1.3 * np.mean([len(one) for one in start])
  assert {tuple(message['role'] for message in one)[:3] for one in policy} <= {
    ('user', 'assistant', 'user'),
    ('user', 'assistant'),
  }
  assert all(one[0]['content'] == prompt for one, prompt in zip(policy, PROMPTS, strict=True))
  resumed, again = jax.tree.map(jnp.asarray, stored), make(bigrams)
  for step in range(6, 12):
    resumed, _ = again(resumed, PROMPTS, jax.random.key(step))
  jax.tree.map(np.testing.assert_array_equal, resumed.params, state.params)


def test_accumulated_gradients_of_conversations_equal_those_at_once(bigrams):
  after = []
  for parts in (1, 4):
    train = nlhf.make_train_step(
      bigrams,
      nlhf.algorithms.online_ipo(tau=0.5),
      nlhf.judges.from_function(longer),
      optax.sgd(1.0),
      response_length=2,
      dialogue=DIALOGUE,
      accumulate=parts,
    )
    state, _ = train(train.init(jax.random.key(0)), PROMPTS, jax.random.key(1))
    after.append(state.slots['policy']['table'])
  np.testing.assert_allclose(*after, atol=1e-5)


def test_user_may_be_a_table(bigrams):
  table = {'one': {'two': 0.25, 'one': 0.75}, '...': None}
  dialogue = nlhf.Dialogue(nlhf.user_from_table(table), turns=2, reply_length=4)
  found = nlhf.converse(bigrams, bigrams.params, PROMPTS * 8, dialogue, length=1)
  replies = [one[2]['content'] for one in found if len(one) > 2]
  assert all(one[1]['content'].strip() == 'one' for one in found if len(one) > 2)
  assert all(one[1]['content'].strip() != 'one' for one in found if len(one) == 2)
  share = replies.count('one') / len(replies)
  assert abs(share - 0.75) < 5 * np.sqrt(0.75 * 0.25 / len(replies))
  with pytest.raises(UserError, match="replies to 'one' must have probabilities"):
    nlhf.user_from_table({'one': {'two': 0.5}})
  strict = nlhf.Dialogue(nlhf.user_from_table({'one': None}), turns=2, reply_length=4)
  with pytest.raises(UserError, match=r"no reply to .*add it, or an entry '\.\.\.'"):
    nlhf.converse(bigrams, bigrams.params, PROMPTS, strict, length=1)


def test_user_may_go_on_as_recorded(bigrams):
  recorded = {'one': [('two', 'one'), ('one',)]}
  dialogue = nlhf.Dialogue(nlhf.user_from_recorded(recorded), turns=3, reply_length=4)
  found = nlhf.converse(bigrams, bigrams.params, PROMPTS, dialogue, length=2)
  lists = [tuple(message['content'] for message in one[2::2]) for one in found]
  assert set(lists[1::2]) == {()}  # nothing is recorded after the prompt `two`
  assert set(lists[::2]) == set(recorded['one'])
  user = nlhf.user_from_recorded({'one': [('Two',)]})
  talk = [{'role': 'x', 'content': text} for text in ('one', 'two', 'two', 'two')]
  with pytest.raises(UserError, match="recorded message 'two' is another text"):
    user.function([talk], [0])


@pytest.mark.slow
def test_user_may_be_a_model(tmp_path):
  pretrained.save(tmp_path / 'model')
  model = nlhf.from_pretrained(tmp_path / 'model')
  user = nlhf.user_from_model(model, 'tell', length=3)
  dialogue = nlhf.Dialogue(user, turns=2, reply_length=12)
  first, again = (
    nlhf.converse(model, model.params, ['tell red', 'say'], dialogue, length=4, seed=3)
    for _ in range(2)
  )
  assert first == again
  assert all(len(conversation) == 4 for conversation in first)


@pytest.mark.parametrize(
  ('user', 'message'),
  [
    ('remote', "user='remote': a remote model is no user here"),
    ('data', "user='data': replies from data answer what the policy did not say"),
    ('reference', r"user='reference': a user is a function of \(conversations, seeds\)"),
    (nlhf.user_from_function(lambda texts, seeds: ['a']), 'for each of 64 conversations, not 1'),
    (nlhf.user_from_function(lambda texts, seeds: [3] * len(texts)), 'conversations, not 3'),
    (nlhf.user_from_function(lambda texts, seeds: None), 'conversations, not None'),
    (nlhf.user_from_function(lambda texts, seeds: 'yes'), "conversations, not 'yes'"),
    (nlhf.user_from_function(lambda texts, seeds: ['a' * 9] * len(texts)), 'raise reply_length=4'),
  ],
)
def test_wrong_users_are_refused(bigrams, user, message):
  def take_a_step():
    train = make(bigrams, dialogue=nlhf.Dialogue(user, 2, 4))
    train(train.init(jax.random.key(0)), PROMPTS, jax.random.key(0))

  with pytest.raises(UserError, match=message):
    take_a_step()


def test_biased_algorithms_and_too_long_conversations_are_refused(bigrams):
  with pytest.raises(UserError, match='does not learn from conversations'):
    make(bigrams, nlhf.algorithms.online_dpo(beta=1.0))
  small = bigrams._replace(max_positions=16)
  train = make(small, response_length=4)
  with pytest.raises(UserError, match='conversation of up to 20 tokens are more than the 16'):
    train(train.init(jax.random.key(0)), PROMPTS, jax.random.key(0))
  with pytest.raises(UserError, match='20 are more than the 16 positions'):
    nlhf.converse(small, small.params, PROMPTS, DIALOGUE, length=4)


def test_judges_read_whole_conversations_and_each_turn_must_end(bigrams):
  tokenizer = bigrams.tokenizer
  one, two = (tokenizer.encode(text, add_special_tokens=False) for text in (' one', ' two'))
  end, ask = [tokenizer.eos_token_id], [tokenizer.sep_token_id]
  row = [*one, *end, *two, *ask, *two, *end]
  turn = np.array([[[1, 1, 0, 0, 2, 2]]])
  responses = Responses(np.array([[row]]), np.ones((1, 1, 6), bool), turn=turn)
  prompts = Prompts(np.array([[*two, *ask]]), np.ones((1, 2), bool))
  texts = comparison_texts(Comparison(prompts, responses, responses), tokenizer)
  assert texts[1] == [['one\n\nUser: two\n\nAssistant: two']]
  assert has_ended(responses, end[0]).item()
  cut = responses._replace(mask=responses.mask & (np.arange(6) < 5), turn=turn * (np.arange(6) < 5))
  assert not has_ended(cut, end[0]).item()
