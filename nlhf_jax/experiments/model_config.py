"""Reads the model of an experiment, new or pretrained, and its mesh."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from nlhf_jax import trees
from nlhf_jax.errors import UserError
from nlhf_jax.experiments import judge_config
from nlhf_jax.experiments.dialogue_config import conversation_length, conversing
from nlhf_jax.experiments.specs import Model, ModelSource
from nlhf_jax.judges.registry import TRAINED
from nlhf_jax.models import architectures, lora, sharding, weights
from nlhf_jax.models.architectures import Architecture
from nlhf_jax.models.blocks import REMAT, Numerics
from nlhf_jax.models.decoder import Decoder, parameter_shapes
from nlhf_jax.models.lora import Lora
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.sampling import layouts
from nlhf_jax.storage import hub
from nlhf_jax.structs import Params

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
SIZES = ('width', 'layers', 'heads', 'key_heads', 'head_size', 'hidden', 'rotary_base')


def make_model(config: ConfigDict, vocabulary: int, files: Sequence[str] = hub.WANTED) -> Model:
  """Makes the model of the section `model`.

  Args:
    config: of the experiment.
    vocabulary: number of tokens of the tokenizer.
    files: patterns of the files to download of a pretrained model.

  Raises:
    UserError: if a setting is wrong, or the tokenizer or the lengths do not fit the model.
  """
  section = config.model
  numerics = make_numerics(section)
  adapter = make_lora(section.lora)
  source = None
  if section.hf:
    folder = hub.locate(section.hf, files)
    family, sizes = architectures.read_architecture(folder)
    name = str(Path(section.hf).absolute()) if Path(section.hf).exists() else section.hf
    source = ModelSource(name, folder, family)
  else:
    sizes = architectures.small(vocabulary, **{name: section[name] for name in SIZES})
  check_fit(config, sizes, vocabulary)
  check_adapter(sizes, adapter)
  decoder = make_decoder(sizes, numerics, adapter)
  begin = make_loader(decoder, source) if source else make_sharded_init(decoder.init)
  return Model(decoder, sizes, numerics, adapter, begin, make_trains(adapter), source)


def check_before_data(config: ConfigDict) -> None:
  """Checks the section `model`, and the lengths of texts, without a tokenizer.

  Raises:
    UserError: if a setting is wrong.
  """
  make_numerics(config.model)
  adapter = make_lora(config.model.lora)
  if config.model.hf:
    folder = hub.locate(config.model.hf, ['config.json'])
    _, sizes = architectures.read_architecture(folder)
  else:
    sizes = architectures.small(
      config.data.vocabulary, **{name: config.model[name] for name in SIZES}
    )
  check_fit(config, sizes, 1)
  check_adapter(sizes, adapter)


def make_model_without_tokenizer(config: ConfigDict) -> Model:
  """Makes the model without reading the tokenizer, whose vocabulary it takes from the config."""
  if not config.model.hf:
    return make_model(config, config.data.vocabulary)
  return make_model(config, 1, ['config.json'])


@contextlib.contextmanager
def make_mesh(config: ConfigDict) -> Iterator[None]:
  """A context with the mesh of the section `mesh`; a single device needs none.

  Raises:
    UserError: if an axis has a wrong size, the mesh does not fit the devices, or there is no such
      layout for sampling.
  """
  for axis, least in (('data', 0), ('fsdp', 1), ('tensor', 1)):
    if config.mesh[axis] < least:
      raise UserError(f'config.mesh.{axis}={config.mesh[axis]} must be at least {least}.')
  layout = config.mesh.get('sampling', 'auto')  # runs of earlier versions have none
  if layout not in ('auto', *layouts.LAYOUTS):
    raise UserError(
      f"config.mesh.sampling='{layout}' must be one of auto, {', '.join(layouts.LAYOUTS)}."
    )
  mesh = sharding.make_mesh(**{axis: config.mesh[axis] for axis in sharding.AXES})
  with (
    contextlib.nullcontext() if mesh.size == 1 else jax.set_mesh(mesh),
    layouts.use_layout(layout),
  ):
    yield


def make_numerics(section: ConfigDict) -> Numerics:
  """The types in which a decoder computes and stores its weights, and what it rematerialises.

  Raises:
    UserError: if a name is unknown.
  """
  for field in ('compute', 'weights'):
    if section[field] not in DTYPES:
      raise UserError(f"config.model.{field}='{section[field]}' must be one of {list(DTYPES)}.")
  if section.remat not in ('nothing', *REMAT):
    choices = ', '.join(('nothing', *REMAT))
    raise UserError(f"config.model.remat='{section.remat}' must be one of {choices}.")
  return Numerics(DTYPES[section.compute], DTYPES[section.weights], section.remat)


def make_lora(section: ConfigDict) -> Lora | None:
  """The adapters of the section `lora`, or None at rank 0.

  Raises:
    UserError: if a setting is wrong.
  """
  if section.rank == 0:
    return None
  if section.alpha <= 0:
    raise UserError(f'config.model.lora.alpha={section.alpha} must be above 0.')
  targets = tuple(target.strip() for target in section.targets.split(','))
  for target in targets:
    if target not in lora.TARGETS:
      raise UserError(
        f"config.model.lora.targets: there is no layer '{target}'; use some of "
        f'{",".join(lora.TARGETS)}.'
      )
  return Lora(section.rank, section.alpha, targets)


def make_trains(adapter: Lora | None) -> Callable[[str], bool]:
  """Path -> whether the parameter is trained; with adapters, only they and judges' heads are."""
  if adapter is None:
    return lambda path: True
  return lambda path: lora.is_adapter(path) or path in ('token', 'verdict')


def make_sharded_init(init: Callable[[Array], Params]) -> Callable[[Array], Params]:
  """Compiles `init` such that its parameters are created with their shardings."""
  return jax.jit(lambda key: sharding.shard_parameters(init(key)))


def make_loader(decoder: Decoder, source: ModelSource) -> Callable[[Array], Params]:
  """A function key -> pretrained weights, with new adapters where the decoder has some."""

  def begin(key):
    adapters, base = trees.split(parameter_shapes(decoder), lora.is_adapter)
    base = weights.load(source.folder, source.family, base, sharding.parameter_sharding)
    return trees.merge(base, lora.initialise(adapters, key)) if adapters else base

  return begin


def check_adapter(sizes: Architecture, adapter: Lora | None) -> None:
  """Refuses an adapter that would be on no layer."""
  if adapter and not sizes.gated and adapter.targets == ('gate',):
    raise UserError("config.model.lora.targets='gate': this model has no gates; name other layers.")


def check_fit(config: ConfigDict, sizes: Architecture, vocabulary: int) -> None:
  """Refuses a tokenizer or texts that are too large for the model.

  Raises:
    UserError: the message names the limit.
  """
  if vocabulary > sizes.vocabulary:
    raise UserError(
      f"config.model.hf='{config.model.hf}': its tokenizer has {vocabulary} tokens, but its "
      f'embedding only {sizes.vocabulary}; they do not belong together.'
    )
  data = config.data
  judges = judge_config.used_judges(config)
  length = conversation_length(config)
  one, two = ('a response', 'two responses')
  remedy = 'lower prompt_length or response_length'
  if conversing(config):
    one, two = ('a conversation', 'two conversations')
    remedy += ', or config.dialogue.turns'
  longest, what = data.prompt_length + length, one
  if 'learned' in judges:  # which reads both responses, each with a token that marks its end
    longest, what = data.prompt_length + 2 * (length + 1), two
  elif judges.intersection(TRAINED):
    longest += 1
  if longest > sizes.max_positions:
    raise UserError(
      f'config.data: a prompt of {data.prompt_length} tokens and {what} of '
      f'{length} exceed the {sizes.max_positions} positions of the model; {remedy}.'
    )
