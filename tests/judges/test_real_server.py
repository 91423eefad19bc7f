"""A real OpenAI-compatible server, `transformers serve`, with a tiny Llama of random weights."""

import http.client
import importlib.util
import itertools
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nlhf_jax.judges.endpoint import Endpoint
from nlhf_jax.judges.judge_prompts import SUMMARIES
from nlhf_jax.judges.remote import make_remote_judge

for package in ('openai', 'fastapi', 'uvicorn', 'torch'):
  if importlib.util.find_spec(package) is None:
    pytest.skip(f'transformers serve needs {package}', allow_module_level=True)

LIMIT = 300  # seconds
PROMPT = 'A baker sold a clock.'
TEXTS = ['A clock was sold.', 'A baker.', 'Who sold it?', 'Baker, clock, sold.', 'Nothing.', 'Hm']
PAIRS = list(itertools.permutations(TEXTS, 2))


def make_model(folder):
  """A model that answers 1 or 2: the sign of a random projection of its input, less the mean."""
  import torch
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
  from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=300,
    special_tokens=['<s>', '</s>'],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )
  tokenizer.train_from_iterator([PROMPT, *TEXTS], trainer)
  fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='<s>', eos_token='</s>')
  fast.chat_template = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
  )
  fast.save_pretrained(folder)
  torch.manual_seed(0)
  config = LlamaConfig(
    vocab_size=len(fast),
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=1024,
    initializer_range=1.0,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=1,
  )
  model = LlamaForCausalLM(config)

  def read(left, right):
    messages = SUMMARIES.messages(PROMPT, left, right)
    ids = fast.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return model.model(torch.tensor([ids])).last_hidden_state[0, -1], len(ids)

  with torch.no_grad():
    hidden = [read(*pair)[0] for pair in PAIRS]
    mean = torch.stack(hidden).mean(dim=0)
    direction = torch.randn(config.hidden_size)
    direction -= mean * (direction @ mean) / (mean @ mean)
    one, two = fast.convert_tokens_to_ids(['1', '2'])
    head = model.lm_head.weight
    head *= 0
    head[one], head[two] = direction, -direction
    answers = {pair: float(read(*pair)[0] @ direction > 0) for pair in PAIRS}
    lengths = {pair: read(*pair)[1] for pair in PAIRS}
  model.save_pretrained(folder)
  return answers, lengths


@pytest.fixture(scope='module')
def served(tmp_path_factory):
  """The server's URL, the model's folder, its answers and input lengths, and the process."""
  folder = tmp_path_factory.mktemp('tiny')
  model = make_model(folder)
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  command = [str(Path(sys.executable).with_name('transformers')), 'serve', str(folder)]
  options = ['--host=127.0.0.1', f'--port={port}', '--device=cpu', '--dtype=float32']
  log = (folder / 'log').open('w')
  process = subprocess.Popen(
    [*command, *options],
    stdout=log,
    stderr=log,
    env=os.environ | {'PYTHONPATH': ''},  # this program needs PyTorch
  )
  try:
    wait_for(port, process, folder / 'log')
    yield f'http://127.0.0.1:{port}/v1', str(folder), *model, process
  finally:
    process.kill()
    process.wait()
    log.close()


def wait_for(port, process, log):
  deadline = time.monotonic() + LIMIT
  while True:
    assert process.poll() is None, log.read_text()
    assert time.monotonic() < deadline
    try:
      connection = http.client.HTTPConnection('127.0.0.1', port, timeout=5)
      connection.request('GET', '/health')
      if connection.getresponse().status == 200:
        return
    except OSError:
      time.sleep(0.1)


@pytest.mark.slow
def test_verdicts_are_the_models_and_outlive_the_server(served, tmp_path):
  url, model, answers, lengths, process = served
  site = Endpoint(url, model, '', tmp_path / 'answers.sqlite', concurrency=4, retries=1)
  judge = make_remote_judge(site, SUMMARIES, sampling={'max_tokens': 1})
  left, right = zip(*PAIRS, strict=True)
  expected = [answers[pair] for pair in PAIRS]
  assert 0.2 < np.mean(expected) < 0.8

  prompts = [PROMPT] * len(PAIRS)
  np.testing.assert_array_equal(judge.preference(prompts, left, right), expected)
  counts = judge.counts()
  assert counts['asked'] == counts['requests'] == len(PAIRS)
  # The server counts tokens and returns no log-probabilities: answers are parsed as text.
  assert counts['prompt_tokens'] == sum(lengths.values())
  assert counts['response_tokens'] == len(PAIRS)
  assert counts['in_both_orders'] == len(PAIRS) / 2
  assert counts['disagree'] == sum(answers[a, b] == answers[b, a] for a, b in PAIRS) / 2

  process.kill()
  process.wait()
  again = make_remote_judge(site, SUMMARIES, sampling={'max_tokens': 1})
  chance = again.preference([*prompts, 'Another text.'], [*left, 'x'], [*right, 'y'])
  np.testing.assert_array_equal(chance, [*expected, np.nan])
  counts = again.counts()
  assert (counts['cached'], counts['asked'], counts['connection']) == (len(PAIRS), 1, 1)
