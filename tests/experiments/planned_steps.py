"""A program for eight simulated devices: what steps of a policy need, and what is planned for them.

Prints one line of JSON for each case that its arguments name, as DATA,FSDP,TENSOR,LAYOUT,LAYERS.
What a step needs is measured apart from the plan: the arrays that are alive when each program of a
real step is called, and the compiler's analysis of that program.
"""

import json
import math
import sys

import jax
import numpy as np

from nlhf_jax import command
from nlhf_jax.algorithms.algorithm import sampled_mixtures
from nlhf_jax.experiments import memory_plan
from nlhf_jax.experiments.language.config import make_policy
from nlhf_jax.experiments.model_config import make_mesh, make_model_without_tokenizer
from nlhf_jax.models import scoring, sharding
from nlhf_jax.sampling import decode as decoding
from nlhf_jax.sampling import layouts, rollout
from nlhf_jax.structs import Comparison, Prompts
from nlhf_jax.training import step_metrics
from nlhf_jax.training.update import initial_state, make_update

SIZES = dict(width=64, heads=8, key_heads=8, head_size=8, hidden=128)
BATCH, PROMPT, RESPONSE, VOCABULARY = 16, 24, 80, 512
MEMORY = 80e9


def make_config(mesh, layout, depth):
  config = command.load_config('nash_md')
  config.model.update(SIZES, layers=depth)
  config.data.update(prompt_length=PROMPT, response_length=RESPONSE, vocabulary=VOCABULARY)
  config.mesh.update(dict(zip(sharding.AXES, mesh, strict=True)), sampling=layout)
  config.policies.self_play.update(batch=BATCH, judge='lengths')
  config.judges = 'lengths'  # which has no weights
  return config


def device_bytes(tree):
  """Bytes of arrays on the first device."""
  first = jax.devices()[0]
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
    if first in leaf.sharding.device_set
  )


def alive():
  """Bytes of all arrays on the first device."""
  return device_bytes([leaf for leaf in jax.live_arrays() if not leaf.is_deleted()])


def analyse(program, *arguments, **settings):
  """Bytes that a program needs besides its arguments."""
  used = program.lower(*arguments, **settings).compile().memory_analysis()
  return used.temp_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes


def measure_sampling(sample):
  """The most bytes at any moment of `sample()`, in which no token is decoded."""
  peaks = []
  prefill, decode, grow = rollout.prefill, decoding.decode, rollout.grow_caches
  move = layouts.to_sampling

  def moved(*arguments):
    found = move(*arguments)
    peaks.append(alive())
    return found

  def prefilled(*arguments):
    peaks.append(alive() + analyse(prefill, *arguments))
    return prefill(*arguments)

  def decoded(*arguments, limit, **settings):
    state = arguments[2]
    if limit == RESPONSE:
      peaks.append(alive() + analyse(decode, *arguments, limit=limit, **settings))
    return state, np.int32(1), np.True_

  def grown(*arguments):
    found = grow(*arguments)
    peaks.append(alive())
    return found

  rollout.prefill, decoding.decode, rollout.grow_caches = prefilled, decoded, grown
  layouts.to_sampling = moved
  try:
    sample()
  finally:
    rollout.prefill, decoding.decode, rollout.grow_caches = prefill, decode, grow
    layouts.to_sampling = move
  return max(peaks)


def measure(config):
  """Bytes that the state holds, and that update and rollout need with it."""
  model = make_model_without_tokenizer(config)
  training = make_policy(config.policies.self_play, 'self_play', config).training
  algorithm, decoder = training.algorithm, model.decoder
  with make_mesh(config):
    before = alive()
    params = model.begin(jax.random.key(0))
    state = sharding.put_parameters(initial_state(algorithm, params, training.optimizer))
    del params
    held = alive() - before
    prompts = sharding.put_rows(
      Prompts(np.ones((BATCH, PROMPT), np.int32), np.ones((BATCH, PROMPT), bool))
    )
    sample = rollout.make_rollout(decoder, sampled_mixtures(algorithm), length=RESPONSE, stop=0)
    sampling = measure_sampling(lambda: sample(state.slots, prompts, jax.random.key(0))) - before
    sides = make_comparison(prompts)
    metrics = step_metrics.make_rollout_metrics(algorithm)
    update = make_update(algorithm, scoring.make_score(decoder), training.optimizer, metrics)
    run = jax.jit(update, donate_argnums=0)
    updating = held + device_bytes(sides) + analyse(run, state, sides, jax.random.key(0))
  return {'held': held, 'update': updating, 'rollout': sampling}


def make_comparison(prompts):
  """A comparison of one response with another one."""
  shape = BATCH, 1, RESPONSE
  numbers = [np.zeros(shape, dtype) for dtype in (np.int32, bool, np.float32, np.float32)]
  left, right = (rollout.Responses(*map(np.copy, numbers)) for _ in range(2))
  payoff = np.zeros((BATCH, 1, 1), np.float32)
  return Comparison(prompts, *sharding.put_rows((left, right, payoff)))


def hand_count(mesh, layout, depth):
  """Weights of two slots, moments of one, and the caches of one rollout, by their sizes."""
  data, fsdp, tensor = mesh
  inner = SIZES['heads'] * SIZES['head_size']
  layer = 4 * SIZES['width'] * inner + 3 * SIZES['width'] * SIZES['hidden']
  weights = 4 * (VOCABULARY * SIZES['width'] + depth * layer) // (fsdp * tensor)
  rows, heads = {
    'replicated': (8, 1),
    'tensor': (data, fsdp * tensor),
    'gathered': (data * fsdp, tensor),
  }[layout]
  places = PROMPT + RESPONSE - 1
  caches = 4 * 2 * depth * BATCH * inner * places // (rows * heads)
  return 3 * weights + caches  # b1=0: there is no first moment


def compare(case):
  *mesh, layout, depth = case.split(',')
  mesh, depth = tuple(map(int, mesh)), int(depth)
  config = make_config(mesh, layout, depth)
  machine = memory_plan.Machine((), 8, MEMORY)
  use = memory_plan.make_plan(config, 'self_play', machine).use
  planned = {
    'held': use.slots + use.optimizer,
    'update': use.slots + use.optimizer + use.update,
    'rollout': use.slots + use.optimizer + use.rollout,
  }
  hand = hand_count(mesh, layout, depth)
  return {'planned': planned, 'measured': measure(config), 'hand': hand}


if __name__ == '__main__':
  for case in sys.argv[1:]:
    print(json.dumps({case: compare(case)}), flush=True)
