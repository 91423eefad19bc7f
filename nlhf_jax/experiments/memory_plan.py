"""Plans how much memory training a policy needs on each device, without having the devices.

What stays in memory between steps (weights, optimiser states) follows from shapes and the sharding
table. The temporary memory of a step is read from the compiler's memory analysis of the update and
the rollout. The update scans over layers, and is compiled at its depth. The rollout, which runs
through them one by one, is compiled with two and with three layers, and extrapolated to all, each
of which needs the same. The programs are compiled for CPUs, which compute in float32, so their
temporary memory is halved for a model that computes in bfloat16. On CPUs attention stores its
logits, which the kernels of accelerators do not, so the memory of long sequences is overestimated.
On a mesh, a rollout is compiled in the layout in which it samples, and its copies are added.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from nlhf_jax import trees
from nlhf_jax.algorithms.algorithm import DATA
from nlhf_jax.experiments.dialogue_config import conversation_length
from nlhf_jax.experiments.judge_config import external_shapes, find_judges, selecting_judge
from nlhf_jax.experiments.language import config as language_config
from nlhf_jax.experiments.language.stage_settings import stages_of_judges
from nlhf_jax.experiments.model_config import make_mesh, make_model_without_tokenizer
from nlhf_jax.experiments.specs import Model, Policy, Training
from nlhf_jax.judges.registry import EXTERNAL
from nlhf_jax.models import scoring, sharding
from nlhf_jax.models.decoder import parameter_shapes, temper
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.reporting import formatting
from nlhf_jax.sampling import layouts, rollout
from nlhf_jax.structs import Comparison, Prompts, Responses
from nlhf_jax.training import step_metrics
from nlhf_jax.training.rollout_step import make_rollout_step
from nlhf_jax.training.update import initial_state, make_update

DEPTHS = (2, 3)
# Without this, the CPU compiler undoes rematerialisation.
OPTIONS = {'xla_disable_hlo_passes': 'cse_barrier_expander'}


class MemoryUse(NamedTuple):
  """Bytes that training one policy needs on each device."""

  slots: int
  optimizer: int
  kept: int  # judges, and policies trained before
  update: int  # gradients and activations
  rollout: int  # caches and activations

  @property
  def peak(self) -> int:
    """The memory in use between steps, plus the larger of update and rollout."""
    return self.slots + self.optimizer + self.kept + max(self.update, self.rollout)


def start(config: ConfigDict, devices: int, memory: float) -> dict[str, MemoryUse]:
  """Prints the memory use of every policy of a config, and what would reduce it where needed.

  Args:
    config: of an experiment that trains language models.
    devices: how many there are.
    memory: gigabytes (10^9 bytes) on each device.
  """
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', devices)
  language_config.check(config)
  with make_mesh(config):
    model = make_model_without_tokenizer(config)
    own, _ = split_shapes(model)
    policies = {
      name: language_config.make_policy(row, name, config) for name, row in config.policies.items()
    }
    used = {*language_config.make_panel(config), *selecting_judge(config)}
    used |= {policy.judge for policy in policies.values()}
    used = find_judges(config).members(used)
    # A judge has as many trained parameters as a policy; the base is shared.
    trained = len(stages_of_judges(used)) + bool(config.held_apart)
    kept = trained * bytes_per_device(own)
    external = [external_shapes(config, name) for name in EXTERNAL if name in used]
    kept += sum(bytes_per_device(shapes) for shapes in external if shapes)
    uses = {}
    for name, policy in policies.items():
      print(f'{name}: compiling {len(model.sizes.layers)} layers ...', flush=True)
      fitted = policy.voting.ensemble if policy.voting else 0  # judges, while it trains
      beside = kept + fitted * bytes_per_device(own)
      if policy.opponent:
        shapes = jax.eval_shape(policy.opponent.optimizer.init, own)
        beside += bytes_per_device(own) + bytes_per_device(shapes)
      uses[name] = plan_policy(config, model, policy, beside, memory * 1e9)
      kept += bytes_per_device(own) * len(policy.entries)
    mesh = jax.sharding.get_mesh()
    shape = 'one device' if mesh.empty else ', '.join(f'{k}={v}' for k, v in mesh.shape.items())
  print_table(uses, shape, memory)
  for name, use in uses.items():
    if use.peak > memory * 1e9:
      print_advice(config, name, use, model, devices)
  return uses


def plan_policy(
  config: ConfigDict, model: Model, policy: Policy, kept: int, memory: float
) -> MemoryUse:
  """The memory use of a policy, in addition to `kept` bytes of models trained before.

  On a mesh a rollout also needs the weights that it samples from, and for a moment another copy of
  them, in its layout and in the type of the computation; `memory` is in bytes of a device.
  """
  state = state_shapes(model, policy.training)
  slots = bytes_per_device(state.params) + bytes_per_device(state.fixed)
  depth, width = len(model.sizes.layers), jnp.dtype(model.numerics.compute).itemsize / 4
  update = width * measure_step(config, truncate_layers(model, depth), policy).update()
  slots_of = {**state.params, **state.fixed}
  with sample_as_runs_do(model, slots_of, memory) as copies:
    low, high = (
      measure_step(config, truncate_layers(model, depth), policy).rollout() for depth in DEPTHS
    )
  layer = (high - low) / (DEPTHS[1] - DEPTHS[0])
  rollout = width * (low + max(layer, 0) * (depth - DEPTHS[0])) + copies
  # Gradients have the type of the weights, not that of the computation.
  wider = max(jnp.dtype(model.numerics.weights).itemsize / 4 - width, 0)
  update += wider * bytes_per_device(state.params['policy'])
  return MemoryUse(slots, bytes_per_device(state.optimizer), kept, round(update), round(rollout))


@contextlib.contextmanager
def sample_as_runs_do(model: Model, slots: Mapping[str, Any], memory: float) -> Iterator[int]:
  """A context with the mesh of the layout in which responses are sampled.

  Yields the bytes that its weights take on each device, in the two copies of a rollout's start.
  """
  if not sharding.has_mesh():
    yield 0
    return
  mesh = layouts.sampling_mesh(layouts.choose(model.decoder, slots, memory))
  with jax.set_mesh(mesh):
    lower = {slot: jax.eval_shape(model.decoder.cast, params) for slot, params in slots.items()}
    yield 2 * bytes_per_device(lower)


def truncate_layers(model: Model, depth: int) -> Model:
  """The model with its first `depth` layers, in float32."""
  sizes = model.sizes._replace(layers=model.sizes.layers[:depth])
  numerics = model.numerics._replace(compute=jnp.float32, weights=jnp.float32)
  return model._replace(sizes=sizes, decoder=make_decoder(sizes, numerics, model.lora))


def shard_parameters(tree: Any) -> Any:
  """Adds the shardings of parameters to their shapes, on the current mesh."""

  def shard(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding.parameter_sharding(name, leaf)
    )

  return jax.tree_util.tree_map_with_path(shard, tree)


def split_shapes(model: Model) -> tuple[Any, Any]:
  """The shapes of the trained parameters, and of those that all slots share."""
  return trees.split(parameter_shapes(model.decoder), model.trains)


def state_shapes(model: Model, training: Training) -> Any:
  """The shapes of a training state."""
  own, base = split_shapes(model)
  optimizer = training.optimizer
  return shard_parameters(
    jax.eval_shape(
      lambda own, base: initial_state(training.algorithm, own, optimizer, base), own, base
    )
  )


def bytes_per_device(tree: Any) -> int:
  """Bytes of a tree of parameters on each device."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(shard_parameters(tree))
  )


class Measured(NamedTuple):
  """Functions that compile a part of a step, and return its temporary bytes on each device."""

  update: Callable[[], int]
  rollout: Callable[[], int]


def measure_step(config: ConfigDict, model: Model, policy: Policy) -> Measured:
  """The parts of a step of this model."""
  training, decoder = policy.training, model.decoder
  algorithm, filters = training.algorithm, policy.filters
  state, key = state_shapes(model, training), jax.eval_shape(lambda: jax.random.key(0))

  def make_rollout(mixtures, **changes):
    # A conversation needs what one response of its length does.
    length = conversation_length(config)
    return rollout.make_rollout(
      decoder, mixtures, length=length, stop=0, filters=filters, **changes
    )

  def feedback(comparison, key):
    return jnp.zeros((*comparison.left.tokens.shape[:2], comparison.right.tokens.shape[1]))

  rollout_step = make_rollout_step(algorithm, make_rollout, feedback)
  batch = shard_rows(batch_shapes(config, training))
  comparison = shard_rows(jax.eval_shape(rollout_step, state.slots, batch, key))
  score = scoring.make_score(temper(decoder, filters.temperature))
  measure = step_metrics.make_rollout_metrics(algorithm)
  update = make_update(algorithm, score, training.optimizer, measure, training.accumulate)
  return Measured(
    lambda: temporary_bytes(jax.jit(update, donate_argnums=0).lower(state, comparison, key)),
    lambda: temporary_bytes(jax.jit(rollout_step).lower(state.slots, batch, key)),
  )


def batch_shapes(config: ConfigDict, training: Training) -> Comparison | Prompts:
  """The shapes of a batch."""
  data, rows = config.data, training.batch

  def tokens_and_mask(length, *axes):
    shape = (rows, *axes, length)
    tokens, mask = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, bool))
    return tokens, mask

  prompts = Prompts(*tokens_and_mask(data.prompt_length))
  if training.algorithm.left != DATA:
    return prompts
  left, right = (Responses(*tokens_and_mask(data.response_length, 1)) for _ in range(2))
  payoff = jax.ShapeDtypeStruct((rows, 1, 1), jnp.float32)
  given = training.algorithm.right == DATA
  return Comparison(prompts, left, *((right, payoff) if given else ()))


def shard_rows(tree: Any) -> Any:
  """Adds the shardings of examples to their shapes."""
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return tree

  def shard(leaf):
    axes = (sharding.ROW_AXES, *(None,) * (leaf.ndim - 1)) if leaf.ndim else ()
    where = NamedSharding(mesh, sharding.spec(axes, leaf.shape) if axes else PartitionSpec())
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

  return jax.tree.map(shard, tree)


def temporary_bytes(lowered: Any) -> int:
  """Bytes that a program needs on each device, in addition to its arguments."""
  used = lowered.compile(OPTIONS).memory_analysis()
  return used.temp_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes


def print_table(uses: Mapping[str, MemoryUse], shape: str, memory: float) -> None:
  """Prints the memory use of every policy."""
  heads = (*MemoryUse._fields, 'peak', f'of {memory:g} GB')
  cells = [
    [
      *(f'{value / 1e9:.4g}' for value in (*use, use.peak)),
      'fits' if use.peak <= memory * 1e9 else 'does NOT fit',
    ]
    for use in uses.values()
  ]
  print(formatting.format_text(f'\nGigabytes on each device ({shape}):', list(uses), heads, cells))


def print_advice(config: ConfigDict, name: str, use: MemoryUse, model: Model, devices: int) -> None:
  """Prints settings that would reduce the largest parts of a policy's memory use."""
  row, ways = config.policies[name], []
  axes = {axis: config.mesh[axis] for axis in sharding.AXES}
  if axes['fsdp'] * axes['tensor'] < devices:
    parts = devices // axes['tensor']
    ways.append(f'--config.mesh.fsdp={parts} --config.mesh.data=0 (all parameters are sharded)')
  if use.slots + use.optimizer > max(use.update, use.rollout) and not model.lora:
    ways.append(
      '--config.model.lora.rank=16 (adapters: one copy of the weights, a small optimiser)'
    )
    if config.model.weights == 'float32':
      ways.append('--config.model.weights=bfloat16')
  whole = config.mesh.sampling != 'gathered'
  if use.rollout > use.update and axes['fsdp'] > 1 and whole:
    ways.append('--config.mesh.sampling=gathered (slower: weights are gathered for every token)')
  if use.update >= use.rollout:
    if config.model.compute == 'float32':
      ways.append('--config.model.compute=bfloat16')
    if config.model.remat == 'nothing':
      ways.append('--config.model.remat=layers (activations are recomputed)')
    twice = 2 * row.accumulate
    ways.append(f'--config.policies.{name}.accumulate={twice} (smaller parts of a batch at once)')
  else:
    ways.append(
      f'--config.policies.{name}.batch={max(row.batch // 2, 1)} (fewer examples per step)'
    )
  print(f'\nTo reduce the memory of {name}:', *ways, sep='\n  ')
