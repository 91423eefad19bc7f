"""Responses in text: seeds, temperatures, batches, conversations."""

import jax
import numpy as np
import pytest

from nlhf_jax.data import tokenizers
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import generation
from nlhf_jax.evaluation.generation import LoadedModel, make_respond
from nlhf_jax.models import architectures
from nlhf_jax.models.transformer import make_decoder

TALK = [
  {'role': 'user', 'content': 'What is it?'},
  {'role': 'assistant', 'content': 'Paris.'},
  {'role': 'user', 'content': 'What?'},
]
TEXTS = ['What is it? It is Paris. Be brief!'] * 20
QUESTIONS = [[{'role': 'user', 'content': text}] for text in ('What?', 'Be brief!', 'Paris?')]


@pytest.fixture(scope='module')
def respond():
  """A policy with large random weights, so that its responses depend on the prompt."""
  tokenizer = tokenizers.train(TEXTS, 300)
  # The template of `tokenizers.train`, changed so that conversations are accepted.
  tokenizer.chat_template = tokenizers.SPACED + ' '
  return make_respond(random_model(tokenizer), length=6)


def random_model(tokenizer):
  sizes = architectures.small(
    len(tokenizer), 8, layers=1, heads=2, key_heads=1, head_size=4, hidden=16, rotary_base=1e4
  )
  decoder = make_decoder(sizes._replace(max_positions=64))
  random = np.random.default_rng(0)
  shapes = jax.eval_shape(decoder.init, jax.random.key(0))
  params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype), shapes)
  return LoadedModel(decoder, params, tokenizer, 64)


def test_greedy_responses_ignore_seed_and_batch(respond):
  texts = respond(QUESTIONS, 0.0, 0)
  assert len(set(texts)) == 3
  assert respond(QUESTIONS[::-1], 0.0, 1) == texts[::-1]


def test_samples_depend_on_the_seed(respond):
  texts = respond(QUESTIONS, 2.0, 0)
  assert respond(QUESTIONS, 2.0, 0) == texts
  assert respond(QUESTIONS, 2.0, 1) != texts


def test_earlier_messages_matter(respond):
  both = respond([TALK, TALK[2:], TALK[2:]], 0.0, 0)
  assert both[0] != both[1] == both[2]


def test_conversation_needs_a_chat_template():
  tokenizer = tokenizers.train(TEXTS, 300)
  respond = make_respond(random_model(tokenizer), length=6)
  message = r"no chat template for a conversation \(the one that ends with 'What\?'\)"
  with pytest.raises(UserError, match=message):
    respond([QUESTIONS[2], TALK], 0.0, 0)


def test_long_conversations_lose_their_first_tokens(respond, capsys):
  long = [[{'role': 'user', 'content': start + 'What is it? ' * 40}] for start in ('', 'Paris ')]
  texts = respond([*QUESTIONS, *long], 0.0, 0)
  assert texts[:3] == respond(QUESTIONS, 0.0, 0)
  assert texts[3] == texts[4]
  assert '2 of 5 conversations are longer than the 58 tokens that fit' in capsys.readouterr().out


def test_prompt_of_all_positions_but_the_response_fits(respond, capsys):
  text = 'What? ' * 20
  (row,) = generation.encode_conversations(tokenizers.train(TEXTS, 300), [text])
  assert 32 < len(row) <= 58  # the next power of two leaves no room for the response
  assert respond([[{'role': 'user', 'content': text}]], 0.0, 0)
  assert 'longer' not in capsys.readouterr().out


def test_response_without_room_for_a_prompt_is_refused():
  with pytest.raises(UserError, match=r'a response of 64 tokens leaves no room .* 64 positions'):
    make_respond(random_model(tokenizers.train(TEXTS, 300)), length=64)


def test_out_of_memory_quotes_the_conversation(monkeypatch):
  def exhausted(*args):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')

  monkeypatch.setattr(generation, 'map_chunks', exhausted)
  tokenizer = tokenizers.train(TEXTS, 300)
  respond = make_respond(random_model(tokenizer), length=6)
  with pytest.raises(UserError, match=r"out of memory for 3 conversations .* ends with 'What\?'"):
    respond(QUESTIONS, 0.0, 0)
