"""A program for eight simulated devices: Nash-MD on one device, and on meshes of the eight.

Its argument is `quick` for four meshes, or `all`. Prints one line of JSON a mesh, that of one
device first: the parameters after training, the bytes of parameters and optimiser state on the
first device and, for some meshes, sampled tokens. With `all`, two lines with adapters follow, of
one device and of a mesh. The last line is of a checkpoint and weights that move between two meshes.
"""

import contextlib
import itertools
import json
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nlhf_jax import trees
from nlhf_jax.algorithms import catalogue
from nlhf_jax.models import architectures, lora, scoring, sharding, weights
from nlhf_jax.models.blocks import FLOAT32
from nlhf_jax.models.lora import Lora
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.sampling import sampler
from nlhf_jax.sampling.dialogue_rollout import Dialogue, Replies, make_dialogue_rollout
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.structs import Comparison, Prompts, Responses
from nlhf_jax.training.checkpoints import Checkpoints
from nlhf_jax.training.update import initial_state, make_update

SIZES = architectures.small(
  vocabulary=16, width=32, layers=1, heads=8, key_heads=4, head_size=4, hidden=64, rotary_base=1e4
)
ALGORITHM = catalogue.nash_md_pg(0.25, 0.1)
MESHES = [
  (data, fsdp, 8 // (data * fsdp))
  for data, fsdp in itertools.product((1, 2, 4, 8), repeat=2)
  if data * fsdp <= 8
]
# Each axis alone, and all three together.
QUICK = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]


def random_params(decoder):
  """Random parameters from NumPy, which need no compilation."""
  random = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: random.normal(size=leaf.shape, scale=0.3).astype(leaf.dtype),
    jax.eval_shape(decoder.init, jax.random.key(0)),
  )


def learn(mesh, adapter=None):
  """Two updates of Nash-MD on the same responses and, on some meshes, a rollout."""
  with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
    decoder = make_decoder(SIZES, FLOAT32, adapter)
    params = random_params(decoder)
    own, base = trees.split(params, lora.is_adapter) if adapter else (params, {})
    base = sharding.put_parameters(base)
    optimizer = optax.adam(1e-2, eps=1e-2)  # the default makes rounding errors into updates
    state = sharding.put_parameters(initial_state(ALGORITHM, own, optimizer, base))
    random = np.random.default_rng(0)
    tokens = random.integers(2, 16, (8, 21)).astype(np.int32)  # 16 of them in each sequence
    sides = [
      Responses(side[:, None], side[:, None] > 3) for side in (tokens[:, :5], tokens[:, 5:10])
    ]
    payoff = np.float32(random.uniform(-0.5, 0.5, (8, 1, 1)))
    prompts = Prompts(tokens[:, 10:], tokens[:, 10:] > 2)
    comparison = sharding.put_rows(Comparison(prompts, *sides, payoff))
    score = scoring.make_score(decoder)
    update = make_update(ALGORITHM, score, optimizer, lambda *_: {})
    for step in range(2):
      state, _ = jax.block_until_ready(update(state, comparison, jax.random.key(step)))
    moved = jax.tree.leaves((state.params, state.optimizer))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in moved)
    params = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params['policy'])])
    sampled, talks = [], []
    if mesh is None or (mesh.shape['fsdp'], mesh.shape['tensor']) in ((2, 2), (1, 8), (8, 1)):
      sampler.FIRST_ROOM = 2  # so that caches grow
      sampler.default_draft_length = lambda: 2
      rollout = make_rollout(decoder, [*ALGORITHM.left, *ALGORITHM.right], length=5, stop=1)
      sides = jax.block_until_ready(rollout(state.slots, comparison.prompts, jax.random.key(0)))
      sampled = [np.asarray(side.tokens).tolist() for side in sides]
    in_all = sys.argv[1] == 'all'
    if in_all and (mesh is None or (mesh.shape['fsdp'], mesh.shape['tensor']) == (2, 2)):
      talks = converse(decoder, state.slots, comparison.prompts)
    return {'sampled': sampled, 'talks': talks, 'params': params.tolist(), 'held': held}


def converse(decoder, slots, prompts):
  """Tokens and turns of conversations of two turns, with replies of up to two tokens."""

  def user(prompts, responses, key):
    del prompts, key
    total = np.sum(responses.tokens * (responses.turn > 0), axis=-1)
    return Replies(np.full((*total.shape, 2), 4), total % 3, total % 4 == 0)

  mixtures = [*ALGORITHM.left, *ALGORITHM.right]
  dialogue = Dialogue(user, turns=2, reply_length=2)
  rollout = make_dialogue_rollout(decoder, mixtures, dialogue=dialogue, length=3, stop=1)
  sides = jax.block_until_ready(rollout(slots, prompts, jax.random.key(0)))
  return [np.asarray(leaf).tolist() for side in sides for leaf in (side.tokens, side.turn)]


def reshard(folder):
  """A checkpoint and a model's files, saved on one mesh and loaded on another."""
  decoder, optimizer = make_decoder(SIZES), optax.adam(1e-2)
  params = random_params(decoder)

  def state_plus(seed):
    moved = jax.tree.map(lambda leaf: leaf + np.float32(seed), params)
    return sharding.put_parameters(initial_state(ALGORITHM, moved, optimizer))

  read = weights._read
  largest = []

  def read_and_measure(*arguments):
    part = read(*arguments)
    largest.append(part.nbytes)
    return part

  weights._read = read_and_measure
  with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
    state = state_plus(1)._replace(step=jnp.int32(5))
    saved = Checkpoints(folder / 'checkpoints')
    saved.save(state)
    saved.close()
    weights.save(folder / 'model', 'llama', state.params['policy'], np.float32)
  before = jax.tree.map(np.asarray, state.params['policy'])
  with jax.set_mesh(sharding.make_mesh(1, 8, 1)):
    restored = Checkpoints(folder / 'checkpoints')
    after = restored.restore(state_plus(0))
    restored.close()
    shapes = jax.eval_shape(decoder.init, jax.random.key(0))
    loaded = weights.load(folder / 'model', 'llama', shapes, sharding.parameter_sharding)
  return {
    'step': int(after.step),
    'same': [equal_trees(before, after.params['policy']), equal_trees(before, loaded)],
    'parts': len(after.params['policy']['embed']['embedding'].sharding.device_set),
    'largest': max(largest),
    'whole': max(leaf.nbytes for leaf in jax.tree.leaves(before)),
  }


def equal_trees(one, other):
  return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, jax.tree.map(np.asarray, other))))


if __name__ == '__main__':
  print(json.dumps(learn(None)), flush=True)
  for sizes in {'quick': QUICK, 'all': MESHES}[sys.argv[1]]:
    print(json.dumps(learn(sharding.make_mesh(*sizes))), flush=True)
  if sys.argv[1] == 'all':
    adapter = Lora(2, 4.0, lora.TARGETS)
    print(json.dumps(learn(None, adapter)), flush=True)
    print(json.dumps(learn(sharding.make_mesh(2, 2, 2), adapter)), flush=True)
  with tempfile.TemporaryDirectory() as folder:
    print(json.dumps(reshard(Path(folder))), flush=True)
