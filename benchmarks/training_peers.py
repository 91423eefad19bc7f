"""Times TRL 1.13.0, the last release with a Nash-MD trainer, in an environment of its own.

python benchmarks/training_peers.py nash_md|reward SETTINGS

SETTINGS is JSON with the fields of `training.Settings`. Prints one line of JSON: part of the step
-> seconds of every step. All settings that are not compared have TRL's defaults; its mixtures are
therefore sampled without a cache.
"""

import json
import random
import string
import sys
import tempfile
import time
from collections import defaultdict
from importlib import metadata

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
  LlamaConfig,
  LlamaForCausalLM,
  LlamaForSequenceClassification,
  PreTrainedTokenizerFast,
  TrainerCallback,
)


def make_tokenizer() -> PreTrainedTokenizerFast:
  """A tokenizer with one token a byte, so that texts have as many tokens as letters."""
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {letter: number for number, letter in enumerate([*letters, '<pad>', '<bos>'])}
  model = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
  model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = decoders.ByteLevel()
  return PreTrainedTokenizerFast(
    tokenizer_object=model,
    pad_token='<pad>',
    bos_token='<bos>',
    eos_token='<eos>',
    padding_side='left',
  )


def config_of(settings: dict, tokenizer: PreTrainedTokenizerFast, **changes) -> LlamaConfig:
  """The config of the Llama that is compared."""
  return LlamaConfig(
    **settings['model'] | changes,
    pad_token_id=tokenizer.pad_token_id,
    bos_token_id=tokenizer.bos_token_id,
    eos_token_id=tokenizer.eos_token_id,
  )


def text(length: int) -> str:
  return ''.join(random.choices(string.ascii_lowercase, k=length))


def arguments(settings: dict, batch: int) -> dict:
  """The arguments that both trainers share."""
  on_gpu = torch.cuda.is_available()
  return dict(
    output_dir=tempfile.mkdtemp(),
    per_device_train_batch_size=batch,
    max_steps=settings['runs'] + 1,
    learning_rate=1e-5,
    logging_steps=10**6,
    save_strategy='no',
    report_to=[],
    use_cpu=not on_gpu,
    bf16=settings['compute'] == 'bfloat16',
  )


class Clock(TrainerCallback):
  """Records the seconds of every step."""

  def __init__(self):
    self.seconds = []

  def on_step_begin(self, *unused, **also):
    self.start = now()

  def on_step_end(self, *unused, **also):
    self.seconds.append(now() - self.start)


def now() -> float:
  """The time after the device has finished."""
  if torch.cuda.is_available():
    torch.cuda.synchronize()
  return time.perf_counter()


def nash_md(settings: dict) -> dict[str, list[float]]:
  """A step of Nash-MD: rollouts of both sides, a small reward model, the update."""
  from trl.experimental.nash_md import NashMDConfig, NashMDTrainer

  spent = defaultdict(list)

  class Timed(NashMDTrainer):
    def _generate_completions(self, *given):
      start = now()
      result = super()._generate_completions(*given)
      spent['rollout'].append(now() - start)
      return result

    def _compute_rewards(self, *given):
      start = now()
      result = super()._compute_rewards(*given)
      spent['judge'].append(now() - start)
      return result

  tokenizer = make_tokenizer()
  policy, reference = (LlamaForCausalLM(config_of(settings, tokenizer)) for _ in range(2))
  reference.load_state_dict(policy.state_dict())
  judge = config_of(settings, tokenizer, **settings['judge'], num_labels=1)
  batch, clock = settings['batch'], Clock()
  trainer = Timed(
    model=policy,
    ref_model=reference,
    reward_funcs=LlamaForSequenceClassification(judge),
    args=NashMDConfig(
      **arguments(settings, batch),
      max_new_tokens=settings['response_length'],
      max_length=settings['prompt_length'] + settings['response_length'],
      temperature=1.0,
      missing_eos_penalty=None,
      mixture_coef=settings['beta'],
      beta=settings['tau'],
    ),
    processing_class=tokenizer,
    train_dataset=Dataset.from_dict(
      {'prompt': [text(settings['prompt_length']) for _ in range(batch * (settings['runs'] + 1))]}
    ),
    callbacks=[clock],
  )
  trainer.train()
  parts = {'step': clock.seconds, **spent}
  parts['update'] = [
    step - rollout - judge
    for step, rollout, judge in zip(*(parts[n] for n in ('step', 'rollout', 'judge')), strict=True)
  ]
  return parts


def reward(settings: dict) -> dict[str, list[float]]:
  """A step of a reward model on pairs of responses."""
  from trl import RewardConfig, RewardTrainer

  tokenizer, clock, batch = make_tokenizer(), Clock(), settings['batch']
  model = LlamaForSequenceClassification(config_of(settings, tokenizer, num_labels=1))
  prompt, response = settings['prompt_length'], settings['response_length'] - 1  # and <eos>
  pairs = range(batch * (settings['runs'] + 1))
  RewardTrainer(
    model=model,
    args=RewardConfig(**arguments(settings, batch), max_length=prompt + response + 1),
    processing_class=tokenizer,
    train_dataset=Dataset.from_dict(
      {
        'prompt': [text(prompt) for _ in pairs],
        'chosen': [text(response) for _ in pairs],
        'rejected': [text(response) for _ in pairs],
      }
    ),
    callbacks=[clock],
  ).train()
  return {'reward model': clock.seconds}


if __name__ == '__main__':
  what, given = sys.argv[1], json.loads(sys.argv[2])
  random.seed(0)
  torch.manual_seed(0)
  torch.set_num_threads(given['threads'])
  found = {'nash_md': nash_md, 'reward': reward}[what](given)
  versions = {name: metadata.version(name) for name in ('trl', 'torch', 'transformers')}
  if torch.cuda.is_available():
    peak = torch.cuda.max_memory_allocated()
  else:
    import resource

    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  print(json.dumps({'parts': found, 'versions': versions, 'peak': peak}))
