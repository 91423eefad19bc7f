"""A program for eight simulated devices: Nash-MD on every mesh of them, and on one device.

Prints one line of JSON a mesh, the first being that of one device: what was sampled, the parameters
after training, and the bytes of parameters and optimiser that the first device holds.
"""

import contextlib
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nlhf_jax import policies, trees
from nlhf_jax.algorithms import catalogue
from nlhf_jax.models import architectures, lora, sharding
from nlhf_jax.models.lora import Lora
from nlhf_jax.models.transformer import FLOAT32, make_decoder
from nlhf_jax.sampling import make_rollout
from nlhf_jax.structs import Comparison, Prompts
from nlhf_jax.training import measures
from nlhf_jax.training.steps import initial_state, make_update

SIZES = architectures.small(
  vocabulary=16, width=32, layers=1, heads=8, key_heads=4, head_size=4, hidden=64, rotary_base=1e4
)
ALGORITHM = catalogue.nash_md_pg(0.25, 0.1)
MESHES = [
  (data, fsdp, 8 // (data * fsdp))
  for data, fsdp in itertools.product((1, 2, 4, 8), repeat=2)
  if data * fsdp <= 8
]


def learn(mesh, adapter):
  """Two steps of Nash-MD, waiting for each program."""
  with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
    decoder = make_decoder(SIZES, FLOAT32, adapter)
    params = sharding.put(jax.jit(decoder.init)(jax.random.key(0)))
    own, base = trees.split(params, lora.is_adapter) if adapter else (params, {})
    optimizer = optax.adam(1e-2, eps=1e-2)  # at the usual one it makes signs of rounding errors
    state = sharding.put(initial_state(ALGORITHM, own, optimizer, base))
    tokens = np.random.default_rng(0).integers(2, 16, (8, 5)).astype(np.int32)
    prompts = sharding.place_rows(Prompts(tokens, tokens > 0))
    rollout = make_rollout(decoder, [*ALGORITHM.left, *ALGORITHM.right], length=5, stop=1)
    score = policies.make_score(decoder)
    update = make_update(ALGORITHM, score, optimizer, measures.of_play(ALGORITHM))
    sampled = []
    for step in range(2):
      left, right = jax.block_until_ready(rollout(state.slots, prompts, jax.random.key(step)))
      lead = jnp.mean(left.tokens, -1) - jnp.mean(right.tokens, -1)
      comparison = Comparison(prompts, left, right, jnp.tanh(lead)[:, :, None] / 2)
      state, _ = jax.block_until_ready(update(state, comparison, jax.random.key(step)))
      sampled += [np.asarray(left.tokens).tolist(), np.asarray(right.tokens).tolist()]
    moved = jax.tree.leaves((state.params, state.optimizer))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in moved)
    params = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(state.params['policy'])])
    return {'sampled': sampled, 'params': params.tolist(), 'held': held}


if __name__ == '__main__':
  print(json.dumps(learn(None, None)), flush=True)
  for sizes in MESHES:
    print(json.dumps(learn(sharding.make_mesh(*sizes), None)), flush=True)
  adapter = Lora(2, 4.0, lora.TARGETS)
  print(json.dumps(learn(None, adapter)), flush=True)
  print(json.dumps(learn(sharding.make_mesh(2, 2, 2), adapter)), flush=True)
