"""What training a policy needs of each device's memory, before there is a device.

What stays between the steps (weights, optimiser) follows from shapes and the sharding table. What a
step needs beside it is read from the memory analysis of the compiled update and rollout, at two and
at three layers, and extended to all of them: layers are alike, and need the same each. They are
compiled for CPUs, which multiply in float32; of a model that computes in bfloat16 half is counted.
Attention keeps its logits there, as the kernels of accelerators do not: what is said of long
sequences is rather too much than too little.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from nlhf_jax import trees
from nlhf_jax.algorithms.algorithm import DATA
from nlhf_jax.experiments.judge_config import pairrm_shapes
from nlhf_jax.experiments.language import config as language_config
from nlhf_jax.experiments.model_config import make_mesh, make_unfilled
from nlhf_jax.experiments.specs import Model, Training
from nlhf_jax.models import scoring, sharding
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.reporting import tables
from nlhf_jax.sampling import rollout
from nlhf_jax.structs import Comparison, Prompts, Responses
from nlhf_jax.training import step_metrics
from nlhf_jax.training.rollout_step import make_play
from nlhf_jax.training.update import initial_state, make_update

DEPTHS = (2, 3)
# Without it CPUs keep what is to be computed again in the backward pass.
OPTIONS = {'xla_disable_hlo_passes': 'cse_barrier_expander'}


class Need(NamedTuple):
  """Bytes on each device, for one policy."""

  slots: int
  optimizer: int
  kept: int  # judges, and players that are done
  update: int  # gradients and activations
  rollout: int  # caches and activations

  @property
  def peak(self) -> int:
    """What stays, and the larger of what the two parts of a step need."""
    return self.slots + self.optimizer + self.kept + max(self.update, self.rollout)


def start(config: ConfigDict, devices: int, memory: float) -> dict[str, Need]:
  """Prints what every policy of a config needs, of `memory` gigabytes on each of the devices."""
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', devices)
  language_config.check(config)
  with make_mesh(config):
    model = make_unfilled(config)
    own, _ = split(model)
    policies = {
      name: language_config.make_policy(row, name, config) for name, row in config.policies.items()
    }
    asked = {*language_config.make_panel(config), *(policy.judge for policy in policies.values())}
    # A judge is as large as what is trained; the base is there but once.
    kept = len(language_config.stages_of_judges(asked)) * held(own)
    if 'pairrm' in asked:
      kept += held(pairrm_shapes(config))
    needs = {}
    for name, policy in policies.items():
      print(f'{name}: compiling {DEPTHS[-1]} of {len(model.sizes.layers)} layers ...', flush=True)
      needs[name] = of_policy(config, model, policy.training, kept)
      kept += held(own) * len(policy.players)
    mesh = jax.sharding.get_mesh()
    shape = 'one device' if mesh.empty else ', '.join(f'{k}={v}' for k, v in mesh.shape.items())
  announce(needs, shape, memory)
  for name, need in needs.items():
    if need.peak > memory * 1e9:
      advise(config, name, need, model, devices)
  return needs


def of_policy(config: ConfigDict, model: Model, training: Training, kept: int) -> Need:
  """What a policy needs at its full depth, beside `kept` bytes of judges and finished players."""
  state = state_of(model, training)
  slots = held(state.params) + held(state.fixed)
  few, more = (step_of(config, at_depth(model, depth), training) for depth in DEPTHS)
  depth, share = len(model.sizes.layers), jnp.dtype(model.numerics.compute).itemsize / 4

  def extended(low, high):
    a_layer = (high - low) / (DEPTHS[1] - DEPTHS[0])
    return share * (low + max(a_layer, 0) * (depth - DEPTHS[0]))

  update, rollout = (extended(low, high) for low, high in zip(few, more, strict=True))
  # Gradients are as wide as the weights, whatever is computed in.
  wider = max(jnp.dtype(model.numerics.weights).itemsize / 4 - share, 0)
  update += wider * held(state.params['policy'])
  return Need(slots, held(state.optimizer), kept, round(update), round(rollout))


def at_depth(model: Model, depth: int) -> Model:
  """The model with its first layers alone, in float32."""
  sizes = model.sizes._replace(layers=model.sizes.layers[:depth])
  numerics = model.numerics._replace(compute=jnp.float32, weights=jnp.float32)
  return model._replace(sizes=sizes, decoder=make_decoder(sizes, numerics, model.lora))


def laid_out(tree: Any) -> Any:
  """Shapes, with where they lie on the mesh in force."""

  def of(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding.parameter_sharding(name, leaf)
    )

  return jax.tree_util.tree_map_with_path(of, tree)


def split(model: Model) -> tuple[Any, Any]:
  """The shapes of what is trained, and of what all slots share."""
  return trees.split(jax.eval_shape(model.decoder.init, jax.random.key(0)), model.trains)


def state_of(model: Model, training: Training) -> Any:
  """The shapes of a training state."""
  own, base = split(model)
  optimizer = training.optimizer
  return laid_out(
    jax.eval_shape(
      lambda own, base: initial_state(training.algorithm, own, optimizer, base), own, base
    )
  )


def held(tree: Any) -> int:
  """Bytes that a device holds of a tree."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(laid_out(tree))
  )


def step_of(config: ConfigDict, model: Model, training: Training) -> tuple[int, int]:
  """Bytes that the update and the rollout need beside what stays, on each device."""
  algorithm, decoder = training.algorithm, model.decoder
  state, key = state_of(model, training), jax.eval_shape(lambda: jax.random.key(0))

  def make_rollout(mixtures, **changes):
    return rollout.make_rollout(
      decoder, mixtures, length=config.data.response_length, stop=0, **changes
    )

  def feedback(comparison, key):
    return jnp.zeros((*comparison.left.tokens.shape[:2], comparison.right.tokens.shape[1]))

  play = make_play(algorithm, make_rollout, feedback)
  batch = laid_out_rows(batch_of(config, training))
  played = jax.jit(play).lower(state.slots, batch, key)
  comparison = laid_out_rows(jax.eval_shape(play, state.slots, batch, key))
  score, measure = scoring.make_score(decoder), step_metrics.of_play(algorithm)
  update = make_update(algorithm, score, training.optimizer, measure, training.accumulate)
  updated = jax.jit(update, donate_argnums=0).lower(state, comparison, key)
  return temporary(updated), temporary(played)


def batch_of(config: ConfigDict, training: Training) -> Comparison | Prompts:
  """The shapes of what a step learns from."""
  data, rows = config.data, training.batch

  def of(length, *axes):
    shape = (rows, *axes, length)
    tokens, mask = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, bool))
    return tokens, mask

  prompts = Prompts(*of(data.prompt_length))
  if training.algorithm.left != DATA:
    return prompts
  left, right = (Responses(*of(data.response_length, 1)) for _ in range(2))
  payoff = jax.ShapeDtypeStruct((rows, 1, 1), jnp.float32)
  given = training.algorithm.right == DATA
  return Comparison(prompts, left, *((right, payoff) if given else ()))


def laid_out_rows(tree: Any) -> Any:
  """The shapes of examples, with where they lie."""
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return tree

  def of(leaf):
    axes = (sharding.ROW_AXES, *(None,) * (leaf.ndim - 1)) if leaf.ndim else ()
    where = NamedSharding(mesh, sharding.spec(axes, leaf.shape) if axes else PartitionSpec())
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

  return jax.tree.map(of, tree)


def temporary(lowered: Any) -> int:
  """Bytes that a program needs on each device, beside its arguments."""
  used = lowered.compile(OPTIONS).memory_analysis()
  return used.temp_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes


def announce(needs: Mapping[str, Need], shape: str, memory: float) -> None:
  """Prints the table."""
  heads = (*Need._fields, 'peak', f'of {memory:g} GB')
  cells = [
    [
      *(f'{value / 1e9:.4g}' for value in (*need, need.peak)),
      'fits' if need.peak <= memory * 1e9 else 'does NOT fit',
    ]
    for need in needs.values()
  ]
  print(tables.as_text(f'\nGigabytes on each device ({shape}):', list(needs), heads, cells))


def advise(config: ConfigDict, name: str, need: Need, model: Model, devices: int) -> None:
  """Prints what would make the largest parts of a policy's need smaller."""
  row, ways = config.policies[name], []
  mesh = jax.tree.map(int, dict(config.mesh))
  if mesh['fsdp'] * mesh['tensor'] < devices:
    parts = devices // mesh['tensor']
    ways.append(f'--config.mesh.fsdp={parts} --config.mesh.data=0 (all parameters in parts)')
  if need.slots + need.optimizer > max(need.update, need.rollout) and not model.lora:
    ways.append(
      '--config.model.lora.rank=16 (adapters: one copy of the weights, a small optimiser)'
    )
    if config.model.weights == 'float32':
      ways.append('--config.model.weights=bfloat16')
  if need.rollout > need.update and mesh['fsdp'] > 1:
    ways.append(
      f'--config.mesh.tensor={devices} --config.mesh.fsdp=1 --config.mesh.data=0 '
      '(rollouts need no whole weights then)'
    )
  if need.update >= need.rollout:
    if config.model.compute == 'float32':
      ways.append('--config.model.compute=bfloat16')
    if config.model.remat == 'nothing':
      ways.append('--config.model.remat=layers (activations computed again)')
    twice = 2 * row.accumulate
    ways.append(f'--config.policies.{name}.accumulate={twice} (updates from smaller parts)')
  else:
    ways.append(f'--config.policies.{name}.batch={max(row.batch // 2, 1)} (fewer examples at once)')
  print(f'\nTo make {name} smaller:', *ways, sep='\n  ')
