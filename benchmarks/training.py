"""Seconds of a step of Nash-MD and of its parts, compared with TRL and with the machine's limits.

python benchmarks/training.py [--model small] [--batches 8 32]

Both train the same random Llama on prompts and responses of 64 tokens, which random models rarely
end early; the judge is a reward model of a few thousand parameters. Every measurement runs in a
process of its own, one after the other. Times are medians after compilation. TRL runs in an
environment that is created if it is missing. Writes benchmarks/results/training_MODEL.json.

The floor of a part is the time of its arithmetic at the rate of the machine's largest matrix
product or, for decoding, the time to read weights and caches, whichever is longer. Arithmetic is
counted as MaxText does: matrix products, causal attention, no recomputation.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import environments
import jax
import jax.numpy as jnp
import numpy as np
from timing import Work, ceilings, time_alternately, timed
from transformers import LlamaConfig

from nlhf_jax import trees
from nlhf_jax.algorithms import catalogue
from nlhf_jax.experiments.specs import Training
from nlhf_jax.experiments.stages import make_policy_update
from nlhf_jax.judges.judge import judge_from_rewards
from nlhf_jax.judges.learned import make_preference_network
from nlhf_jax.judges.reward import make_reward_network
from nlhf_jax.models import architectures, lora, scoring
from nlhf_jax.models.architectures import Architecture
from nlhf_jax.models.blocks import Numerics
from nlhf_jax.models.lora import TARGETS, Lora
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.sampling import rollout, sampler
from nlhf_jax.structs import Comparison, Prompts, Responses
from nlhf_jax.training import step_metrics
from nlhf_jax.training.loop import Schedule
from nlhf_jax.training.optimizers import make_optimizer
from nlhf_jax.training.rollout_step import make_rollout_step
from nlhf_jax.training.update import initial_state, make_update

ROOT = Path(__file__).parents[1]
REQUIREMENTS = (
  'torch==2.13.0', 'trl==1.13.0', 'transformers==5.23.0', 'datasets==5.2.0', 'accelerate==1.15.0',
  'requests==2.34.2'
)  # fmt: skip
PEERS = ROOT / '.cache' / 'trl'
OPTIMIZER = dict(
  name='adamw',
  learning_rate=1e-5,
  steps=10**6,
  warmup=0,
  b1=0.9,
  b2=0.98,
  decay=0.01,
  clip=1.0,
  rounding='stochastic',
)

MODELS = {
  'small': dict(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=688,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=8,
    max_position_embeddings=512,
    tie_word_embeddings=False,
  ),
  # The sizes of SmolLM2-135M.
  'smollm2': dict(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
  ),
  # The sizes of Llama 3.2 1B.
  '1b': dict(
    vocab_size=128_256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
  ),
}
JUDGE = dict(
  hidden_size=32,
  intermediate_size=64,
  num_hidden_layers=1,
  num_attention_heads=2,
  num_key_value_heads=2,
)


# Dense operations a second in bfloat16 from data sheets, for the model FLOPs utilisation (MFU).
PEAKS = {
  'NVIDIA A100-SXM4-80GB': 312e12,
  'NVIDIA H100 80GB HBM3': 989e12,
  'NVIDIA H200': 989e12,
  'TPU v5 lite': 197e12,
  'TPU v6 lite': 918e12,
}


class Settings(NamedTuple):
  """The settings of a measurement; lengths in tokens."""

  model: dict
  batch: int
  judge: dict = JUDGE
  prompt_length: int = 64
  response_length: int = 64
  beta: float = 0.125  # weight of the reference in the mixture
  tau: float = 0.1
  compute: str = 'float32'
  runs: int = 5
  threads: int = os.cpu_count() or 1


def architecture(fields: dict) -> Architecture:
  """The architecture of a Llama config with these fields."""
  return architectures.architecture_from_config(LlamaConfig(**fields))


# --- Ours ---


def ours(settings: Settings, only: Sequence[str] = ()) -> dict:
  """part -> seconds of each run; and compilation time, number of programs and peak memory.

  With `only`, measures these parts of a step, of a model without adapters.
  """
  compiling = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: 'backend_compile' in event and compiling.append(seconds)
  )
  compute = jnp.dtype(settings.compute)
  numerics = Numerics(compute, compute)
  stop, size = settings.model['vocab_size'] - 1, settings.batch
  random = np.random.default_rng(0)

  def tokens(*shape):
    return jnp.asarray(random.integers(stop, size=shape), jnp.int32)

  prompts = tokens(size, settings.prompt_length)
  prompts = Prompts(prompts, jnp.ones_like(prompts, bool))
  small = make_decoder(architecture(settings.model | settings.judge), numerics)
  network = make_reward_network(small, settings.judge['hidden_size'], stop)
  rewards = judge_from_rewards(network, network.init(jax.jit(small.init)(jax.random.key(1))))
  judge = jax.jit(lambda comparison: jax.nn.sigmoid(rewards(comparison)) - 0.5)

  parts = {}
  kinds = {'': None, ' with LoRA': Lora(16, 32.0, TARGETS)}
  for kind, adapter in list(kinds.items())[: 1 if only else 2]:
    decoder = make_decoder(architecture(settings.model), numerics, adapter)
    calls = step_parts(settings, decoder, prompts, judge, stop)
    calls = {name + kind: calls[name] for name in only or calls}
    rollouts = {name: call for name, call in calls.items() if 'rollout' in name}
    parts |= time_alternately(rollouts, settings.runs)
    parts |= {
      name: timed(call, settings.runs) for name, call in calls.items() if name not in rollouts
    }
  if not only:
    sides = [tokens(size, 1, settings.response_length) for _ in range(2)]
    sides = [Responses(side, jnp.ones_like(side, bool)) for side in sides]
    pairs = Comparison(prompts, *sides, jnp.full((size, 1, 1), 0.5))
    parts |= time_judges(
      settings, make_decoder(architecture(settings.model), numerics), pairs, stop
    )
  return {
    'parts': parts,
    'compiling': sum(compiling),
    'programs': len(compiling),
    'peak': environments.peak_memory(),
  }


def step_parts(settings, decoder, prompts, judge, stop) -> dict[str, Callable]:
  """part of a step of Nash-MD -> a function that runs it."""
  algorithm, key = catalogue.nash_md_pg(settings.beta, settings.tau), jax.random.key(2)
  own, base = trees.split(jax.jit(decoder.init)(jax.random.key(0)), lora.is_adapter)
  own, base = (own, base) if own else (base, {})
  optimizer = make_optimizer(**OPTIMIZER)
  state = initial_state(algorithm, own, optimizer, base)
  make = partial(rollout.make_rollout, decoder, length=settings.response_length, stop=stop)
  both, alone = make([*algorithm.left, *algorithm.right]), make([*algorithm.left, *algorithm.left])
  comparison = Comparison(prompts, *both(state.slots, prompts, key))
  comparison = comparison._replace(payoff=judge(comparison))
  score, training = (
    scoring.make_score(decoder),
    Training(algorithm, optimizer, 1, 1, Schedule(1, 1)),
  )
  update = make_update(algorithm, score, optimizer, step_metrics.make_rollout_metrics(algorithm))
  rollout_step = make_rollout_step(algorithm, make, lambda comparison, key: judge(comparison))
  step = make_policy_update(training, score, rollout_step)

  def run_update(update_state, *inputs):
    def call():
      nonlocal state
      state, metrics = update_state(state, *inputs, key)
      return metrics

    return call

  return {
    'rollout': lambda: both(state.slots, prompts, key),
    'self-play rollout': lambda: alone(state.slots, prompts, key),
    'judge': lambda: judge(comparison),
    'update': run_update(update, comparison),
    'step': run_update(step, prompts),
  }


def time_judges(settings, decoder, pairs, stop) -> dict[str, list[float]]:
  """Kind of judge -> seconds of its training steps."""
  params, key = jax.jit(decoder.init)(jax.random.key(0)), jax.random.key(2)
  optimizer, width, parts = make_optimizer(**OPTIMIZER), settings.model['hidden_size'], {}
  rewards, preferences = (
    make(decoder, width, stop) for make in (make_reward_network, make_preference_network)
  )
  for name, algorithm, network, score, measure in (
    ('reward model', catalogue.reward_model(), rewards, rewards.score, step_metrics.reward_metrics),
    (
      'preference model',
      catalogue.preference_model(),
      preferences,
      preferences.logit,
      step_metrics.preference_metrics,
    ),
  ):
    state = initial_state(algorithm, network.init(params), optimizer)
    update = make_update(algorithm, score, optimizer, measure)

    def call(update=update):
      nonlocal state
      state, metrics = update(state, pairs, key)
      return metrics

    parts[name] = timed(call, settings.runs)
  return parts


# --- The limits of the machine ---


def works(settings: Settings) -> dict[str, Work]:
  """part -> its work."""
  sizes = architecture(settings.model)
  rows, prompt, response = settings.batch, settings.prompt_length, settings.response_length
  heads, groups = (count * sizes.head_size for count in (sizes.heads, sizes.key_heads))
  layer = sizes.width * (2 * heads + 2 * groups + 3 * sizes.hidden)
  weights, head = len(sizes.layers) * layer, sizes.width * sizes.vocabulary

  def forward(length, logits_at):
    """Operations of a forward pass over `length` tokens, with logits at `logits_at` of them."""
    attention = 2 * len(sizes.layers) * heads * length**2  # half of all pairs
    return rows * (2 * weights * length + 2 * head * logits_at + attention)

  def decoding(members, slots, passes):
    """Work of decoding rows for all mixture members, after one prefill a slot.

    Weights are read in `passes` passes.
    """
    keys = response * prompt + response**2 / 2  # that a row attends to, over its steps
    row = 2 * (weights + head) * response + 4 * len(sizes.layers) * heads * keys
    operations = slots * forward(prompt, 1) + members * rows * row
    itemsize = jnp.dtype(settings.compute).itemsize
    # Rows of a slot share the prompt's cache, which is read once.
    own, shared = members * rows * response**2 / 2, slots * rows * response * prompt
    caches = 2 * len(sizes.layers) * groups * (own + shared)
    bytes_ = itemsize * (passes * (weights + head) + caches)
    cached = rows * (slots * prompt + members * (response - 1))
    uncached = rows * members * (prompt * response + response * (response - 1) // 2)
    return Work(operations, bytes_, 2 * rows * response, cached, uncached)

  whole = prompt + response
  scores, pair = forward(whole, response), forward(whole + response + 2, 0)
  return {
    'rollout': decoding(3, 2, response * (1 + 1 / sampler.default_draft_length())),
    'self-play rollout': decoding(2, 1, response),
    'update': Work(
      4 * scores, 0, rows * response
    ),  # forward and backward, and the reference's forward
    'reward model': Work(3 * 2 * forward(whole + 1, 0), 0, 2 * rows * response),
    'preference model': Work(3 * pair, 0, 2 * rows * response),
  }


# --- Results ---


def table(found: dict) -> str:
  """A text table with a row a part: seconds, those of TRL, and the floor as a fraction."""
  lines = []
  for batch, case in found['batches'].items():
    lines.append(f'\nBatch {batch}:')
    lines.append(''.join(f'{head:>14}' for head in HEADS))
    for name, part in case.items():
      if 'seconds' not in part:
        continue
      peer, floor = part.get('peer'), part.get('floor')
      cells = [f'{1e3 * part["seconds"]:,.0f}', f'+-{100 * part["spread"]:.0f} %']
      cells += [f'{1e3 * peer:,.0f}', f'{peer / part["seconds"]:.1f}'] if peer else ['', '']
      cells += [f'{100 * floor / part["seconds"]:.0f} %'] if floor else ['']
      lines.append(f'{name:>28}' + ''.join(f'{cell:>14}' for cell in cells))
  return '\n'.join(lines)


HEADS = ('              part', 'ms', 'spread', 'TRL, ms', 'times faster', 'of the floor')


def measure(settings: Settings, device: str, ceiling: dict, python: Path | None) -> dict:
  """All parts at one batch: seconds, spread, the peer's seconds and the floor."""
  given = json.dumps(settings._asdict())
  program = [sys.executable, __file__, '--only', given]
  own = environments.run_json(program)
  step = environments.run_json([*program, '--parts', 'step'])
  peers = {}
  for what in ('nash_md', 'reward') if python else ():
    script = ROOT / 'benchmarks' / 'training_peers.py'
    peers[what] = environments.run_json([python, script, what, given])
  by_peer = {name: taken for peer in peers.values() for name, taken in peer['parts'].items()}
  work, case = works(settings), {}
  for name, taken in own['parts'].items():
    median = statistics.median(taken)
    case[name] = {'seconds': median, 'spread': (max(taken) - min(taken)) / 2 / median}
    if name in by_peer:
      case[name]['peer'] = statistics.median(by_peer[name][1:])
    if name in work:
      case[name] |= {
        'floor': work[name].seconds(ceiling),
        'tokens_per_second': work[name].tokens / median,
        'operations_per_second': work[name].operations / median,
      }
      if work[name].bytes:
        case[name] |= {
          'share_of_copy': work[name].bytes / median / ceiling['copy'],
          'forwards_per_token': work[name].forwards / work[name].tokens,
          'forwards_per_token_uncached': work[name].forwards_uncached / work[name].tokens,
        }
      elif peak := PEAKS.get(device):
        case[name]['mfu'] = case[name]['operations_per_second'] / peak
  for kind in ('', ' with LoRA'):
    mixture, alone = (own['parts'][name + kind] for name in ('rollout', 'self-play rollout'))
    ratios = [both / one for both, one in zip(mixture, alone, strict=True)]
    case['rollout' + kind]['over_self_play'] = statistics.median(ratios)
  whole = ('rollout', 'update')
  case['step']['floor'] = sum(case[part]['floor'] for part in whole)
  peaks = {what: peer['peak'] for what, peer in peers.items()}
  return case | {
    'compiling': {'seconds': own['compiling'], 'spread': 0.0},
    # A process that trains, and does nothing else, as the peer's.
    'memory': {'programs': own['programs'], 'ours': step['peak'], **peaks},
  }


def main(model: str, batches: list[int], compute: str, runs: int, alone: bool) -> None:
  """Measures, prints and writes all batches."""
  python = None if alone else environments.make(PEERS, REQUIREMENTS)
  # Measured in a process of its own, which releases the device.
  limits = environments.run_json([sys.executable, __file__, '--ceilings', '--compute', compute])
  ceiling, found = limits['ceilings'], limits | {'model': model, 'batches': {}}
  print(json.dumps(found, indent=2), flush=True)
  for batch in batches:
    settings = Settings(MODELS[model], batch, compute=compute, runs=runs)
    found['batches'][batch] = measure(settings, found['machine']['device'], ceiling, python)
  print(table(found))
  path = ROOT / 'benchmarks' / 'results' / f'training_{model}.json'
  path.write_text(json.dumps(found, indent=2) + '\n')
  print(f'\nWrote {path.relative_to(ROOT)}')


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--model', choices=MODELS, default='small')
  parser.add_argument('--batches', type=int, nargs='+', default=[8, 32])
  parser.add_argument('--compute', choices=['float32', 'bfloat16'], default='float32')
  parser.add_argument('--runs', type=int, default=5, help='steps that are timed')
  parser.add_argument('--alone', action='store_true', help='without TRL')
  parser.add_argument('--ceilings', action='store_true', help=argparse.SUPPRESS)
  parser.add_argument('--only', help=argparse.SUPPRESS)  # the settings of one process
  parser.add_argument('--parts', nargs='*', default=(), help=argparse.SUPPRESS)  # and what it runs
  flags = parser.parse_args()
  if flags.only:
    print(json.dumps(ours(Settings(**json.loads(flags.only)), flags.parts)))
  elif flags.ceilings:
    print(json.dumps({'machine': environments.machine(), 'ceilings': ceilings(flags.compute)}))
  else:
    main(flags.model, flags.batches, flags.compute, flags.runs, flags.alone)
