"""Bytes that the programs of a policy's step need on each device, as their compiler says.

An update is one program. A rollout is several, one after the other: the weights move into the
layout in which they are sampled, prompts are read, tokens are decoded, and caches grow when they
are full. Its memory is that of the largest of these phases, with everything that is alive then.

For TPUs, which need not be there, programs are compiled as they run. Other programs are compiled
for CPUs. These compute in float32, so the figures are halved for a model that computes in
bfloat16; and their attention stores its logits, so long sequences are overestimated.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from nlhf_jax import trees
from nlhf_jax.experiments.specs import Model
from nlhf_jax.models import layers, sharding
from nlhf_jax.models.decoder import parameter_shapes
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.sampling import layouts
from nlhf_jax.sampling.decode import compacted_size, decode, grow_caches
from nlhf_jax.sampling.prefill import prefill
from nlhf_jax.sampling.sampler import Sampler, SamplingState, cache_limits
from nlhf_jax.sampling.sharded_decoding import decode_shards, shrinks
from nlhf_jax.structs import Comparison, Prompts

# Decoding runs through the layers of each slot one by one: it is compiled with up to so many of
# all slots together, else with these numbers of layers, and extrapolated.
COMPILED_LAYERS = 32
DEPTHS = (4, 8)
CPU_OPTIONS = {'xla_backend_optimization_level': 0}  # sooner, in the same memory
UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
EXCESS = re.compile(r'\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)')


class TooLargeError(Exception):
  """The compiler refused a program, which needs more bytes than a device has."""

  def __init__(self, needed: int, available: int):
    super().__init__()
    self.needed, self.available = needed, available


class Program(NamedTuple):
  """Bytes of a program on each device: of its arguments, and of what it allocates besides."""

  arguments: int
  allocated: int


# --- Shapes ---


def shard_parameters(tree: Any) -> Any:
  """Adds the shardings of parameters to their shapes, on the current mesh."""

  def shard(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding.parameter_sharding(name, leaf)
    )

  return jax.tree_util.tree_map_with_path(shard, tree)


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


def sharded_bytes(tree: Any) -> int:
  """Bytes of arrays on each device, from shapes, of which some have shardings."""

  def held(leaf):
    where = getattr(leaf, 'sharding', None)
    shape = where.shard_shape(leaf.shape) if where else leaf.shape
    return math.prod(shape) * leaf.dtype.itemsize

  return sum(map(held, jax.tree.leaves(tree)))


def parameter_bytes(tree: Any) -> int:
  """Bytes of parameters on each device of the current mesh."""
  return sharded_bytes(shard_parameters(tree))


def split_shapes(model: Model) -> tuple[Any, Any]:
  """The shapes of the trained parameters, and of those that all slots share."""
  return trees.split(parameter_shapes(model.decoder), model.trains)


def make_key() -> Any:
  """The shape of a random key."""
  return jax.eval_shape(lambda: jax.random.key(0))


# --- Programs ---


def for_compiler(model: Model, depth: int | None = None) -> Model:
  """The model as it is compiled: with its first `depth` layers, on CPUs in float32."""
  sizes, numerics = model.sizes, model.numerics
  if depth is not None:
    sizes = sizes._replace(layers=sizes.layers[:depth])
  if not on_tpu():
    numerics = numerics._replace(compute=jnp.float32, weights=jnp.float32)
  return model._replace(sizes=sizes, decoder=make_decoder(sizes, numerics, model.lora))


def on_tpu() -> bool:
  """Whether programs are compiled for TPUs."""
  return sharding.devices()[0].platform == 'tpu'


def float32_share(model: Model) -> float:
  """The bytes that the model needs, as a share of those of the compiled program."""
  return 1.0 if on_tpu() else jnp.dtype(model.numerics.compute).itemsize / 4


def compile_program(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, Program]:
  """The compiled program, and its bytes.

  Raises:
    TooLargeError: if the compiler for TPUs says that it does not fit.
  """
  try:
    compiled = lowered.compile(None if on_tpu() else CPU_OPTIONS)
  except jax.errors.JaxRuntimeError as error:
    excess = read_excess(str(error))
    if excess is None:
      raise
    raise TooLargeError(*excess) from None
  used = compiled.memory_analysis()
  allocated = used.temp_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
  return compiled, Program(used.argument_size_in_bytes, allocated)


def read_excess(message: str) -> tuple[int, int] | None:
  """Bytes that a program needs, and those that there are, from an error of the TPU compiler."""
  found = EXCESS.search(message)
  if not found:
    return None
  needed, unit, available, other = found.groups()
  return int(float(needed) * UNITS[unit]), int(float(available) * UNITS[other])


# --- Phases of a step ---


def measure_update(update: Callable, model: Model, state: Any, comparison: Comparison) -> int:
  """Bytes of an update on each device, besides those of its state.

  Args:
    update: of `for_compiler(model)`.
    model: whose memory is wanted.
    state: shapes of the training state of `for_compiler(model)`.
    comparison: shapes of the batch.
  """
  lowered = jax.jit(update, donate_argnums=0).lower(state, comparison, make_key())
  _, program = compile_program(lowered)
  share = float32_share(model)
  # Gradients have the type of the weights, not that of the computation.
  wider = 0 if on_tpu() else max(jnp.dtype(model.numerics.weights).itemsize / 4 - share, 0)
  gradient = wider * sharded_bytes(state.params['policy'])
  return round(share * program.allocated + gradient) + sharded_bytes(comparison)


def measure_judging(model: Model, rows: int, length: int) -> int:
  """Bytes of the activations of a judge that reads so many rows of so many tokens."""
  compiled = for_compiler(model)
  own = shard_parameters(parameter_shapes(compiled.decoder))
  rows += -rows % sharding.example_shards()
  tokens, mask = (jax.ShapeDtypeStruct((rows, length), dtype) for dtype in (jnp.int32, bool))

  @jax.jit
  def read(params, tokens, mask):
    hidden, _ = compiled.decoder.prefill(params, tokens, mask)
    return jnp.sum(hidden, axis=(1, 2))

  _, program = compile_program(read.lower(own, *shard_rows((tokens, mask))))
  return round(float32_share(model) * program.allocated)


def measure_rollout(
  model: Model,
  make_slots: Callable[[Model], Mapping[str, Any]],
  make_sampler: Callable[[Model], Sampler],
  prompts: Prompts,
  memory: float,
) -> int:
  """Bytes of a rollout on each device, besides those of the slots in training.

  Args:
    model: whose memory is wanted.
    make_slots: model -> shapes of all slots, on the current mesh.
    make_sampler: model -> the settings.
    prompts: shapes.
    memory: bytes of a device, by which the layout is chosen.
  """
  slots = make_slots(model)
  if not sharding.has_mesh():
    parts = layer_bytes(slots)
    return _sampling_peak(model, make_slots, make_sampler, prompts, parts)
  slots = layouts.used_slots(make_sampler(model), slots)
  layout = layouts.choose(model.decoder, slots, memory)
  mesh = layouts.sampling_mesh(layout, model.decoder)
  low = {slot: jax.eval_shape(model.decoder.cast, params) for slot, params in slots.items()}
  moving = parameter_bytes(low)
  with jax.set_mesh(mesh):
    moved = parameter_bytes(low)
    parts = layer_bytes(low)
    sampling = _sampling_peak(model, make_slots, make_sampler, prompts, parts)
  return moved + max(moving, sampling)


def is_extrapolated(model: Model, sampler: Sampler) -> bool:
  """Whether decoding is compiled with fewer layers than the model has."""
  depth = len(model.sizes.layers)
  slots = {slot for members in sampler.mixtures for slot, _ in members}
  return depth * len(slots) > COMPILED_LAYERS and depth > DEPTHS[1]


def layer_bytes(slots: Mapping[str, Any]) -> int:
  """Bytes of the layers, which decoding reads from a copy with one array for each of them."""
  return parameter_bytes({slot: layers.split(params)[0] for slot, params in slots.items()})


def _sampling_peak(model, make_slots, make_sampler, prompts, layer_copies) -> int:
  """Bytes of the largest phase after the weights have moved; on the mesh of the layout."""
  share, depth = float32_share(model), len(model.sizes.layers)
  own = for_compiler(model)
  prompts = shard_rows(jax.tree.map(_pad_shape, prompts))
  reading, state = _compile_prefill(own, make_slots(own), make_sampler(own), prompts)
  if not is_extrapolated(own, make_sampler(own)):
    held, allocated = _compile_decode(own, make_slots(own), make_sampler(own), state)
  else:
    found = []
    for layers_compiled in DEPTHS:
      short = for_compiler(model, layers_compiled)
      slots, sampler = make_slots(short), make_sampler(short)
      _, first = _compile_prefill(short, slots, sampler, prompts)
      found.append(_compile_decode(short, slots, sampler, first))
    held, allocated = (_extrapolate(pair, depth) for pair in zip(*found, strict=True))
  sampler = make_sampler(own)
  old = _bytes_before_growth(state, cache_limits(sampler))
  size = compacted_size(sampler, len(prompts.tokens))
  compacted = held * size // len(prompts.tokens)
  decoding = layer_copies + share * (held + max(allocated, old, compacted))
  return round(max(share * reading, decoding))


def _bytes_before_growth(state: SamplingState, limits: list[int]) -> int:
  """Bytes of the last state before the largest one, which is a copy of it; 0 if none grows."""
  if len(limits) == 1:
    return 0
  caches = sum(sharded_bytes((cache.keys, cache.values)) for cache in state.caches)
  return sharded_bytes(state) + caches * (limits[-2] - limits[0]) // (limits[0] - 1)


def _pad_shape(leaf):
  rows = leaf.shape[0] + -leaf.shape[0] % sharding.example_shards()
  return jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype)


def _extrapolate(values: tuple[int, int], depth: int) -> float:
  (low, high), (few, more) = values, DEPTHS
  return high + max(high - low, 0) / (more - few) * (depth - more)


def _compile_prefill(model, slots, sampler, prompts) -> tuple[int, SamplingState]:
  """Bytes that reading the prompts allocates, and the shapes of the state after it."""
  slots = _sampled(model, slots, sampler)
  lowered = prefill.lower(sampler, slots, prompts, make_key())
  compiled, program = compile_program(lowered)
  state = jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
    lowered.out_info,
    compiled.output_shardings,
  )
  return program.allocated, state


def _compile_decode(model, slots, sampler, state) -> tuple[int, int]:
  """Bytes of the state with the largest caches, and those that decoding allocates besides."""
  slots = _sampled(model, slots, sampler)
  numbered = {slot: shard_parameters(layers.unstack(params)) for slot, params in slots.items()}
  state = _grow(state, max(sampler.length - 1, 1))
  size, limit = len(state.prompts), sampler.length
  if shrinks():
    lowered = decode_shards.lower(sampler, numbered, state, make_key(), limit=limit)
  else:
    settings = {'batch': size, 'limit': limit, 'compact_to': 0}
    lowered = decode.lower(sampler, numbered, state, make_key(), **settings)
  _, program = compile_program(lowered)
  # On TPUs, arrays may take more than their numbers do.
  held = max(program.arguments - sharded_bytes(numbered), sharded_bytes(state))
  return held, program.allocated


def _sampled(model, slots, sampler):
  """The shapes of the slots that a sampler reads, as they lie while it samples."""
  slots = layouts.used_slots(sampler, slots)
  if not sharding.has_mesh():
    return slots
  return {
    slot: shard_parameters(jax.eval_shape(model.decoder.cast, params))
    for slot, params in slots.items()
  }


def _grow(state: SamplingState, room: int) -> SamplingState:
  grown = jax.eval_shape(partial(grow_caches, room=room), state)
  return jax.tree.map(
    lambda old, new: jax.ShapeDtypeStruct(new.shape, new.dtype, sharding=old.sharding), state, grown
  )
