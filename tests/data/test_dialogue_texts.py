"""Conversations of several turns have the tokens that chat templates write, and are read back."""

import itertools

import numpy as np
import pytest
from transformers import AutoTokenizer

from nlhf_jax.data import dialogue_texts, tokenizers
from nlhf_jax.data.readers import Problem
from nlhf_jax.structs import Responses
from tests.data.chats import FAMILIES, byte_level, save
from tests.data.test_pretrained import ASSISTANT, TEXTS, USER, published_ids


@pytest.fixture(scope='module', params=FAMILIES)
def family(request, tmp_path_factory):
  """(name, the tokenizer loaded by transformers, the tokenizer loaded by us)."""
  folder = save(tmp_path_factory.mktemp(request.param), *FAMILIES[request.param][0]())
  published = AutoTokenizer.from_pretrained(folder, local_files_only=True)
  return request.param, published, tokenizers.load(folder)


def pieces(tokenizer, texts, cut=False):
  """The token ids of answers and replies in turn; the first answer loses its end if it is cut."""
  rows = [tokenizers.response_ids(tokenizer, [text])[0] for text in texts[::2]]
  if cut:
    rows[0] = rows[0][: rows[0].index(tokenizer.eos_token_id)]
  replies = [dialogue_texts.reply_ids(tokenizer, [t], [cut])[0] for t in texts[1::2]]
  return [row for pair in itertools.zip_longest(rows, replies) for row in pair if row is not None]


def responses(rows):
  """One conversation; turns of the policy are every second of its pieces."""
  tokens = np.concatenate(rows)
  turn = np.concatenate(
    [np.full(len(row), (n // 2 + 1) * (n % 2 == 0)) for n, row in enumerate(rows)]
  )
  leaves = (np.pad(x, (0, 2))[None, None] for x in (tokens, np.ones(len(tokens), bool), turn))
  tokens, mask, turn = leaves
  return Responses(tokens, mask, turn=turn)


def test_tokens_equal_the_rendered_template(family):
  name, published, tokenizer = family
  for question, answer, reply in zip(TEXTS, TEXTS[1:] + TEXTS[:1], TEXTS[::-1], strict=True):
    messages = [USER(question), ASSISTANT(answer), USER(reply)]
    if name in ('llama', 'gemma'):  # whose templates strip texts, and policies are not stripped
      messages = [message | {'content': message['content'].strip()} for message in messages]
    expected = published_ids(published, messages, add_generation_prompt=True)
    (prompt,) = tokenizers.prompt_ids(tokenizer, [question])
    first, second = pieces(tokenizer, [answer, reply, 'a'])[:2]
    if name == 'thinking':  # its template leaves thoughts out of earlier answers
      assert second == expected[-len(second) :]
    else:
      assert [*prompt, *first, *second] == expected


@pytest.mark.parametrize('cut', [False, True])
def test_messages_are_read_back(family, cut):
  _, _, tokenizer = family
  for first, second, third in zip(TEXTS, TEXTS[::-1], TEXTS[2:] + TEXTS[:2], strict=True):
    rows = pieces(tokenizer, [first, second, third], cut)
    conversation = responses(rows)
    assert dialogue_texts.turn_texts(tokenizer, conversation) == [[first, second, third]]
    begun = conversation._replace(turn=np.where(conversation.turn == 2, 0, conversation.turn))
    assert dialogue_texts.was_cut(tokenizer, begun) == [cut]
    prompts = tokenizers.pad_prompts(tokenizer, tokenizers.prompt_ids(tokenizer, ['a']), 80)
    read = dialogue_texts.messages(tokenizer, prompts, conversation)
    assert read == [[USER('a'), ASSISTANT(first), USER(second), ASSISTANT(third)]]
    (text,) = dialogue_texts.transcripts(tokenizer, conversation)
    assert text == f'{first}\n\nUser: {second}\n\nAssistant: {third}'


def test_users_cannot_write_special_tokens(family):
  _, _, tokenizer = family
  (plain, spelled) = dialogue_texts.reply_ids(
    tokenizer, ['a', f'a{tokenizer.eos_token}'], [False, False]
  )
  count = lambda row: row.count(tokenizer.eos_token_id)
  assert count(spelled) == count(plain)


def test_template_of_one_question_is_refused(tmp_path):
  template = '{{ messages[0].content }}{{ messages[1].content if messages[1:] }}<eos>'
  settings = {'eos_token': '<eos>', 'chat_template': template}
  tokenizer = tokenizers.load(save(tmp_path / 'short', byte_level(['<eos>']), settings))
  with pytest.raises(Problem, match='leaves messages out'):
    dialogue_texts.reply_ids(tokenizer, ['a'], [False])
