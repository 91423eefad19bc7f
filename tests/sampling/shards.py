"""A model whose responses have known lengths, and the work that shards do for them.

As a program for eight simulated devices, prints the row-steps of an accepted token: rows of a batch
times the steps that it takes, on the shard that takes longest, times the shards. Lengths are
exponential with a mean of 64 tokens, and at most 512.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from nlhf_jax.models import sharding
from nlhf_jax.models.decoder import Decoder, PrefillCache
from nlhf_jax.sampling.decode import grow_caches
from nlhf_jax.sampling.prefill import prefill
from nlhf_jax.sampling.refill import run_queues
from nlhf_jax.sampling.sampler import cache_limits, make_sampler
from nlhf_jax.sampling.sharded_decoding import decode_shards
from nlhf_jax.sampling.token import UNFILTERED
from nlhf_jax.structs import Prompts
from tests import conftest

LENGTH, BATCHES = 512, 20

# After token n comes n - 1, down to the stop token 0: a response is as long as its prompt says.
COUNTDOWN = Decoder(
  init=None,
  prefill=lambda params, tokens, mask: (tokens[..., None], PrefillCache((), (), mask)),
  decode=lambda params, tokens, cache: (tokens[..., None], cache),
  logits=lambda params, hidden: 50.0 * jax.nn.one_hot(hidden[..., 0] - 1, LENGTH),
)


def prompts_of(lengths):
  """Prompts of one token each."""
  tokens = jnp.asarray(lengths, jnp.int32)[:, None]
  return Prompts(tokens, jnp.ones_like(tokens, bool))


def row_steps(lengths, length):
  """The row-steps of each shard of the current mesh."""
  settings = make_sampler(COUNTDOWN, [{'policy': 1.0}], length, 0, 1, UNFILTERED)
  prompts = jax.tree.map(sharding.put_rows, prompts_of(lengths))
  key = jax.random.key(0)
  state = prefill(settings, {'policy': {}}, prompts, key)
  for limit in cache_limits(settings):
    state, _ = decode_shards(
      settings, {'policy': {}}, grow_caches(state, limit - 1), key, limit=limit
    )
  # The step of a prompt counts those that it was in the batch for, and prefill.
  steps = np.asarray(state.step - 1).reshape(sharding.example_shards(), -1)
  return steps.sum(axis=1).tolist()


def refilled_row_steps(lengths, batch):
  """The row-steps of each shard of the current mesh, which refills its slots."""
  settings = make_sampler(COUNTDOWN, [{'policy': 1.0}], LENGTH, 0, 1, UNFILTERED)
  prompts = jax.tree.map(sharding.put_rows, prompts_of(lengths))
  numbers, slots = np.array([0, len(lengths)]), {'policy': {}}
  responses, steps = run_queues(
    settings, slots, slots, prompts, jax.random.key(0), numbers, batch=batch
  )
  np.testing.assert_array_equal(responses.mask.sum(axis=-1)[:, 0], lengths)
  steps = np.asarray(steps - 1).reshape(-1, sharding.example_shards())  # dealt by turns
  return steps.sum(axis=0).tolist()


def exponential_lengths(random, *shape):
  return np.clip(np.ceil(random.exponential(64, shape)), 1, LENGTH).astype(int)


def figures():
  """Row-steps of an accepted token, means of some batches."""
  random = np.random.default_rng(0)
  with jax.set_mesh(sharding.make_mesh(8, 1, 1)):
    batches = exponential_lengths(random, BATCHES, 128)
    shrinking = [8 * max(row_steps(lengths, LENGTH)) / lengths.sum() for lengths in batches]
    queues = exponential_lengths(random, BATCHES, 4 * 128)
    refilled = [8 * max(refilled_row_steps(lengths, 128)) / lengths.sum() for lengths in queues]
    together = [128 * (lengths.max() - 1) / lengths.sum() for lengths in batches]
  found = {'shrinking': shrinking, 'refilled': refilled, 'together': together}
  return {name: np.mean(values) for name, values in found.items()}


def outcome():
  """What this program prints."""
  flags = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
  program = subprocess.run(
    [sys.executable, '-m', 'tests.sampling.shards'],
    env=os.environ | {'XLA_FLAGS': f'{conftest.FLAGS} {flags}'},
    cwd=Path(__file__).parents[2],
    capture_output=True,
    text=True,
    check=False,
  )
  assert program.returncode == 0, program.stderr[-3000:]
  return json.loads(program.stdout)


if __name__ == '__main__':
  print(json.dumps(figures()))
