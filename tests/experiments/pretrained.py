"""A small chat model with random weights, as it would be downloaded, and comparisons to learn."""

import importlib
import json
from pathlib import Path

import pytest
import transformers

from nlhf_jax.data import tokenizers
from tests.models import families

CHAT = (
  "{% for message in messages %}{{ '<sep>' + message.role + ':' + message.content + eos_token }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<sep>assistant:' }}{% endif %}"
)
WORDS = ['red', 'green', 'blue', 'big', 'small', 'ball', 'tree', 'house', 'cat', 'dog']


def write_comparisons(path):
  """Twelve prompts, of which each second is a conversation."""
  lines = []
  for number in range(12):
    word, other = WORDS[number % 10], WORDS[(number + 3) % 10]
    prompt = f'tell {number} {word}'
    if number % 2:
      prompt = [
        {'role': 'user', 'content': f'say {word}'},
        {'role': 'assistant', 'content': word},
        {'role': 'user', 'content': f'again {number}'},
      ]
    lines.append({'prompt': prompt, 'chosen': f'{word} {other}', 'rejected': f'no {other}'})
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def save(folder, family='llama'):
  """The model, its config and its tokenizer; `transformers` reads all of it."""
  model = families.save(family, folder, vocab_size=4096, num_hidden_layers=2)
  tokenizer = tokenizers.train([*WORDS, 'tell say again no user: assistant:'], 500)
  tokenizer.chat_template = CHAT
  tokenizer.save_pretrained(folder)
  transformers.GenerationConfig(eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)
  return model


def config(folder, toy, write=True):
  """Of a toy run of Nash-MD with adapters on such a model, which is written to the folder first."""
  if write:
    save(folder / 'model')
    write_comparisons(folder / 'comparisons.jsonl')
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[2]))
    made = toy(importlib.import_module('nlhf_jax.configs.nash_md').get_config('file'))
  made.data.update(path=str(folder / 'comparisons.jsonl'), prompt_length=40, response_length=8)
  made.model.hf = str(folder / 'model')
  made.model.lora.rank = 2
  del made.policies.self_play
  made.policies.nash_md.optimizer.update(learning_rate=0.05, warmup=0)
  return made
