"""Texts survive encoding and decoding, and rows are padded on the right side."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from nlhf_jax.data import tokenizers

TEXTS = [
  'a cat sat on the mat .',
  'Grüße, 漢字 and \U0001f469\u200d\U0001f680\U0001f389',
  "it 's , well , spaced ?",
  '\n\ttabs and lines\r\n',
  '  two spaces first, two last  ',
  'the special ones: <pad> <eos><sep>',
  'a\x00b',
]


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizers.train(TEXTS, 300)


@pytest.mark.parametrize('text', [*TEXTS, 'никогда не видел', '¿', ''])
def test_any_text_survives_a_round_trip(tokenizer, text):
  (ids,) = tokenizers.response_ids(tokenizer, [text])
  padded = tokenizers.pad_responses(tokenizer, [ids], 120)
  assert tokenizers.response_texts(tokenizer, padded.tokens, padded.mask) == [text]


def test_own_tokenizers_keep_special_tokens_out_of_text(tokenizer):
  special = set(tokenizer.all_special_ids)
  for encode, last in (
    (tokenizers.prompt_ids, tokenizer.sep_token_id),
    (tokenizers.response_ids, tokenizer.eos_token_id),
  ):
    for ids in encode(tokenizer, TEXTS):
      assert ids[-1] == last
      assert not special & set(ids[:-1])


def test_the_first_word_has_the_usual_token(tokenizer):
  first, later = tokenizers.response_ids(tokenizer, ['mat', 'cat mat'])
  assert later[-len(first) :] == first


def test_a_saved_tokenizer_gives_the_same_ids(tokenizer, tmp_path):
  tokenizer.save_pretrained(tmp_path)
  loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
  assert len(loaded) == len(tokenizer)
  assert tokenizers.prompt_ids(loaded, TEXTS) == tokenizers.prompt_ids(tokenizer, TEXTS)
  responses = tokenizers.response_ids(loaded, TEXTS)
  assert responses == tokenizers.response_ids(tokenizer, TEXTS)
  padded = tokenizers.pad_responses(loaded, responses, 120)
  assert tokenizers.response_texts(loaded, padded.tokens, padded.mask) == TEXTS


def test_prompts_pad_left_and_responses_pad_right(tokenizer):
  pad = tokenizer.pad_token_id
  rows = [[7, 8, 9], [5], [6, 7, 8, 9]]
  prompts = tokenizers.pad_prompts(tokenizer, rows, 4)
  assert prompts.tokens.tolist() == [[pad, 7, 8, 9], [pad, pad, pad, 5], [6, 7, 8, 9]]
  responses = tokenizers.pad_responses(tokenizer, rows, 4)
  assert responses.tokens.tolist() == [[[7, 8, 9, pad]], [[5, pad, pad, pad]], [[6, 7, 8, 9]]]
  for padded in (prompts, responses):
    assert padded.mask.dtype == bool
    np.testing.assert_array_equal(padded.mask, padded.tokens != pad)


@pytest.mark.parametrize('pad', [tokenizers.pad_prompts, tokenizers.pad_responses])
def test_a_row_that_does_not_fit_is_refused(tokenizer, pad):
  with pytest.raises(ValueError, match='5 tokens does not fit into 4'):
    pad(tokenizer, [[7], [5, 6, 7, 8, 9]], 4)


def test_texts_flatten_leading_axes(tokenizer):
  padded = tokenizers.pad_responses(tokenizer, tokenizers.response_ids(tokenizer, TEXTS[:4]), 120)
  tokens, mask = padded.tokens.reshape(2, 2, 120), padded.mask.reshape(2, 2, 120)
  assert tokenizers.response_texts(tokenizer, tokens, mask) == TEXTS[:4]
