"""A real trained model gives its published text and probabilities."""

import json
from functools import partial

import jax
import numpy as np
import pytest
import transformers

from nlhf_jax.models import scoring
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.sampling.token import Filters
from nlhf_jax.structs import Prompts, Responses
from tests.models import stories
from tests.models.test_families import load


@pytest.fixture(scope='module')
def model(shared, tmp_path_factory):
  folder = tmp_path_factory.mktemp('stories')
  stories.convert(shared / 'data' / 'stories260K', folder)
  expected = json.loads((shared / 'data' / 'stories260K' / 'expected.json').read_text())
  return folder, expected


def test_greedy_decoding_gives_the_published_text(model):
  folder, expected = model
  decoder, params = load(folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  rollout = make_rollout(
    decoder, [{'policy': 1.0}], length=200, stop=tokenizer.eos_token_id, filters=Filters(top_k=1)
  )
  begin = np.array([[tokenizer.bos_token_id]], np.int32)
  (responses,) = rollout({'policy': params}, Prompts(begin, begin > 0), jax.random.key(0))
  ids = np.asarray(responses.tokens)[0, 0].tolist()
  assert [tokenizer.bos_token_id, *ids] == expected['own_greedy_ids_200']
  assert tokenizer.decode(ids).strip() == expected['published_greedy_text_200_tokens_from_bos']


def test_log_probabilities_equal_the_published_ones(model):
  folder, expected = model
  decoder, params = load(folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  cases = expected['own_float64_reference']
  rows = tokenizer([case['text'] for case in cases])['input_ids']
  assert rows == [case['ids_with_bos'] for case in cases]
  assert tokenizer.batch_decode(rows, skip_special_tokens=True) == [case['text'] for case in cases]
  begin = np.full((len(rows), 1), tokenizer.bos_token_id, np.int32)
  mask = np.arange(max(map(len, rows)) - 1) < np.array([len(row) - 1 for row in rows])[:, None]
  tokens = np.zeros(mask.shape, np.int32)
  tokens[mask] = [token for row in rows for token in row[1:]]
  score = jax.jit(partial(scoring.log_probs, decoder))
  scores = score(params, Prompts(begin, begin > 0), Responses(tokens[:, None], mask[:, None]))
  for row, case in zip(np.asarray(scores)[:, 0], cases, strict=True):
    wanted = case['next_token_logprobs']
    np.testing.assert_allclose(row[: len(wanted)], wanted, atol=1e-4)
    assert float(row.sum()) == pytest.approx(case['sum_logprob'], abs=1e-4)


@pytest.mark.slow
def test_samples_have_the_model_distribution(model):
  folder, _ = model
  decoder, params = load(folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  rows = tokenizer(['Once upon a time', 'Lily had a red ball and'])['input_ids']
  width = max(map(len, rows))
  mask = width - np.arange(width) <= np.array([len(row) for row in rows])[:, None]
  tokens = np.zeros(mask.shape, np.int32)
  tokens[mask] = [token for row in rows for token in row]
  prompts, count, length = Prompts(tokens, mask), 128, 24
  stop = tokenizer.eos_token_id
  rollout = make_rollout(decoder, [{'policy': 1.0}], length=length, stop=stop, count=count)
  (responses,) = rollout({'policy': params}, prompts, jax.random.key(0))
  score = jax.jit(partial(scoring.log_probs, decoder))
  np.testing.assert_allclose(responses.log_probs, score(params, prompts, responses), atol=1e-4)
  # Log-probability plus entropy has mean zero at every token.
  surprise = np.asarray(responses.log_probs + responses.entropy, np.float64).sum(axis=-1)
  error = surprise.std() / np.sqrt(surprise.size)
  assert abs(surprise.mean()) < 5 * error
  assert error < 0.4  # of about 45 nats: one wrongly sampled token in a hundred is detected
