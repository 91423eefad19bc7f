"""A policy in text: seeds and temperatures, batches that change nothing, conversations."""

import jax
import numpy as np
import pytest

from nlhf_jax.data import tokenizers
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import generation
from nlhf_jax.evaluation.generation import make_respond
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
  """A policy of random weights that are large, so that it heeds what it reads."""
  tokenizer = tokenizers.train(TEXTS, 300)
  # As `tokenizers.train` has it, but for the name: this one is told of conversations.
  tokenizer.chat_template = tokenizers.SPACED + ' '
  decoder, params = decoder_of(tokenizer)
  return make_respond(decoder, params, tokenizer, length=6, longest=64)


def decoder_of(tokenizer):
  sizes = architectures.small(
    len(tokenizer), 8, layers=1, heads=2, key_heads=1, head_size=4, hidden=16, rotary_base=1e4
  )
  decoder = make_decoder(sizes)
  random = np.random.default_rng(0)
  shapes = jax.eval_shape(decoder.init, jax.random.key(0))
  return decoder, jax.tree.map(
    lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype), shapes
  )


def test_the_likeliest_tokens_do_not_depend_on_seed_or_company(respond):
  said = respond(QUESTIONS, 0.0, 0)
  assert len(set(said)) == 3
  assert respond(QUESTIONS[::-1], 0.0, 1) == said[::-1]


def test_a_seed_draws_the_same_at_a_temperature_and_another_one_does_not(respond):
  said = respond(QUESTIONS, 2.0, 0)
  assert respond(QUESTIONS, 2.0, 0) == said
  assert respond(QUESTIONS, 2.0, 1) != said


def test_what_was_said_before_matters(respond):
  both = respond([TALK, TALK[2:], TALK[2:]], 0.0, 0)
  assert both[0] != both[1] == both[2]


def test_a_conversation_needs_a_template():
  tokenizer = tokenizers.train(TEXTS, 300)
  respond = make_respond(*decoder_of(tokenizer), tokenizer, length=6, longest=64)
  said = r"no chat template for a conversation \(the one that ends with 'What\?'\)"
  with pytest.raises(UserError, match=said):
    respond([QUESTIONS[2], TALK], 0.0, 0)


def test_what_is_too_long_to_read_is_refused(respond):
  said = r"tokens and a response of 6 are more than the 64 .* ends with '.*What is it\? '"
  with pytest.raises(UserError, match=said):
    respond([*QUESTIONS, [{'role': 'user', 'content': 'What is it? ' * 40}]], 0.0, 0)


def test_too_little_memory_is_told_with_what_was_asked(monkeypatch):
  def exhausted(*args):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')

  monkeypatch.setattr(generation, 'map_chunks', exhausted)
  tokenizer = tokenizers.train(TEXTS, 300)
  respond = make_respond(*decoder_of(tokenizer), tokenizer, length=6, longest=64)
  with pytest.raises(UserError, match=r"no memory for 3 conversations .* ends with 'What\?'"):
    respond(QUESTIONS, 0.0, 0)
