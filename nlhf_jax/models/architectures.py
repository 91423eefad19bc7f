"""Architectures of decoders as data, read from Hugging Face configs.

The differences between the families (Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3, GPT-2) are fields
of one record, which `transformer.py` implements once.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from nlhf_jax.errors import UserError
from nlhf_jax.ranges import POSITIVE, AtLeastOne, Positive, Range

# Sizes that every family has, by their names in configs of transformers.
SIZES = (
  'vocab_size',
  'hidden_size',
  'num_hidden_layers',
  'num_attention_heads',
  'max_position_embeddings',
)
SIZE = Range('in [1, 2^31)', lambda value: 1 <= value < 2**31)
LAYERS = Range('in [1, 4096]', lambda value: 1 <= value <= 4096)


class Llama3Scaling(NamedTuple):
  """Rotary frequencies for Llama 3.1's longer context.

  Wavelengths above `original / low` tokens are multiplied by `factor`, those below
  `original / high` kept, and those between interpolated.
  """

  factor: float
  low: float
  high: float
  original: int


# Its fields in config.json.
LLAMA3 = ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings')


class Rotary(NamedTuple):
  """Rotary positions (arXiv 2104.09864): pair i rotates by base^(-2i/C) radians a token."""

  base: float
  factor: float = 1.0  # positions are divided by it
  llama3: Llama3Scaling | None = None

  def frequencies(self, size: int) -> Float[np.ndarray, 'half']:
    """Radians a token of each of the `size`/2 pairs of dimensions."""
    frequencies = self.base ** (-np.arange(size // 2) / (size // 2)) / self.factor
    if self.llama3 is None:
      return frequencies.astype(np.float32)
    factor, low, high, original = self.llama3
    kept = np.clip((original * frequencies / (2 * np.pi) - low) / (high - low), 0, 1)
    return (frequencies * (kept + (1 - kept) / factor)).astype(np.float32)


class Layer(NamedTuple):
  """The properties that may differ between layers of one decoder."""

  rotary: Rotary | None
  window: int | None = None  # number of latest tokens attended to, the own included; None: all


class Architecture(NamedTuple):
  """The sizes and variants of a decoder; `hidden` is the width inside the feed-forward block."""

  vocabulary: int
  width: int
  heads: int
  key_heads: int
  head_size: int
  hidden: int
  max_positions: int
  layers: tuple[Layer, ...]
  activation: str = 'silu'
  gated: bool = True  # SwiGLU and GeGLU (arXiv 2002.05202)
  norm: str = 'rms'
  norm_epsilon: float = 1e-6
  norm_offset: float = 0.0  # added to stored scales
  head_norms: bool = False  # queries and keys are normalised a head
  post_norms: bool = False  # outputs of attention and feed-forward are normalised too
  input_bias: bool = False  # of queries, keys and values
  output_bias: bool = False
  hidden_bias: bool = False
  learned_positions: bool = False
  embedding_scale: float = 1.0
  attention_scale: float | None = None  # None: head_size^-1/2
  attention_cap: float | None = None  # cap tanh(logit / cap)
  logit_cap: float | None = None
  tied: bool = True  # the output head is the transposed embedding


def small(
  vocabulary: int,
  width: AtLeastOne,
  layers: AtLeastOne,
  heads: AtLeastOne,
  key_heads: AtLeastOne,
  head_size: AtLeastOne,
  hidden: AtLeastOne,
  rotary_base: Positive,
) -> Architecture:
  """The decoder of the embedded task: Llama's, with tied embeddings of unit size."""
  return Architecture(
    vocabulary=vocabulary,
    width=width,
    heads=heads,
    key_heads=key_heads,
    head_size=head_size,
    hidden=hidden,
    max_positions=1 << 20,
    layers=(Layer(Rotary(rotary_base)),) * layers,
    embedding_scale=width**0.5,
  )


def read_architecture(folder: Path) -> tuple[str, Architecture]:
  """The `model_type` and the architecture of a model's folder, from any release of transformers.

  Raises:
    UserError: if there is no config, or its family is not supported.
  """
  path = folder / 'config.json'
  if not path.is_file():
    raise UserError(f'{folder}: there is no config.json; give the folder of a model.')
  try:
    _check_content(json.loads(path.read_bytes()))
    from transformers import AutoConfig  # imports PyTorch if it is installed, which takes seconds

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return config.model_type, architecture_from_config(config)
  except UserError as error:
    raise UserError(f'{folder}: {error}') from None
  except Exception as error:  # of any kind that a broken config raises
    # The first line of a validation error ends with a colon.
    reason = ' '.join(map(str.strip, str(error).splitlines()[:2])).rstrip('.')
    raise UserError(f'{path} cannot be used: {reason}; download it again.') from None


def _check_content(config: Any) -> None:
  """Refuses contents of a config.json that would be read wrongly, or would take all memory.

  Raises:
    UserError: the message names the field.
  """
  if not isinstance(config, dict):
    raise UserError('config.json is no JSON object; download it again.')
  if config.get('quantization_config'):
    raise UserError(
      'config.json has a quantization_config, and quantised weights are not read; give the model '
      'in bfloat16, float16 or float32.'
    )
  for field in ('num_hidden_layers', 'n_layer'):  # before lists of that length are made
    if isinstance(config.get(field), int):
      _check_range(field, config[field], LAYERS)


def architecture_from_config(config: Any) -> Architecture:
  """The architecture of a `transformers` config.

  Raises:
    UserError: if its family or one of its settings is not supported.
  """
  if config.model_type not in FAMILIES:
    raise UserError(
      f"models of type '{config.model_type}' are not supported; use one of {', '.join(FAMILIES)}."
    )
  if config.is_heterogeneous:
    raise UserError('config.json: per_layer_config is not supported.')
  for field in SIZES:
    _check_range(field, getattr(config, field), SIZE)
  sizes = FAMILIES[config.model_type](config)
  _check_architecture(sizes)
  return sizes


def _check_architecture(sizes: Architecture) -> None:
  """Refuses values that no decoder can have; names are those of config.json.

  Raises:
    UserError: the message names the field.
  """
  _check_range('num_key_value_heads', sizes.key_heads, SIZE)
  _check_range('head_dim', sizes.head_size, SIZE)
  _check_range('intermediate_size', sizes.hidden, SIZE)
  _check_range('the epsilon of norms', sizes.norm_epsilon, POSITIVE)
  if sizes.heads % sizes.key_heads:
    raise UserError(
      f'config.json: num_attention_heads={sizes.heads} must be a multiple of '
      f'num_key_value_heads={sizes.key_heads}.'
    )
  for field, value in (
    ('query_pre_attn_scalar', sizes.attention_scale),
    ('attn_logit_softcapping', sizes.attention_cap),
    ('final_logit_softcapping', sizes.logit_cap),
  ):
    if value is not None:
      _check_range(field, value, POSITIVE)
  for layer in set(sizes.layers):
    if layer.window is not None:
      _check_range('sliding_window', layer.window, SIZE)
    if layer.rotary:
      if sizes.head_size % 2:
        raise UserError(f'config.json: head_dim={sizes.head_size} must be even.')
      _check_range('rope_theta', layer.rotary.base, POSITIVE)
      _check_range('factor', layer.rotary.factor, POSITIVE)
      if layer.rotary.llama3:
        _check_llama3(layer.rotary.llama3)


def _check_llama3(scaling: Llama3Scaling) -> None:
  for field, value in zip(LLAMA3, scaling, strict=True):
    _check_range(field, value, POSITIVE)
  if scaling.low >= scaling.high:
    raise UserError(
      f'config.json: low_freq_factor={scaling.low} must be below high_freq_factor={scaling.high}.'
    )


def _check_range(field: str, value: Any, allowed: Range) -> None:
  """Raises UserError if the value is no number in the range; sizes are whole numbers."""
  kind, name = (int, 'a whole number') if allowed in (SIZE, LAYERS) else (int | float, 'a number')
  if isinstance(value, bool) or not isinstance(value, kind) or not allowed.contains(value):
    raise UserError(f'config.json: {field}={value!r:.80} must be {name} {allowed.text}.')


def _common(config, **differences) -> Architecture:
  """The fields that Llama shares with the families after it."""
  activation = _own(config, 'hidden_activation') or config.hidden_act
  head_size = getattr(config, 'head_dim', None)
  return Architecture(
    vocabulary=config.vocab_size,
    width=config.hidden_size,
    heads=config.num_attention_heads,
    key_heads=config.num_key_value_heads,
    head_size=config.hidden_size // config.num_attention_heads if head_size is None else head_size,
    hidden=config.intermediate_size,
    max_positions=config.max_position_embeddings,
    layers=_layers(config),
    activation=lookup(ACTIVATIONS, 'hidden_act', activation),
    norm_epsilon=config.rms_norm_eps,
    tied=config.tie_word_embeddings,
    **differences,
  )


def _own(config, field: str) -> Any:
  """A field that the family has, or None: transformers ignores those of other families."""
  return getattr(config, field) if field in type(config).__dataclass_fields__ else None


def _llama(config):
  bias = config.attention_bias
  return _common(config, input_bias=bias, output_bias=bias, hidden_bias=config.mlp_bias)


def _qwen2(config):
  return _common(config, input_bias=True)


def _qwen3(config):
  bias = config.attention_bias
  return _common(config, head_norms=True, input_bias=bias, output_bias=bias)


def _gemma(config, head_norms):
  if _own(config, 'use_bidirectional_attention'):
    raise UserError('config.json: use_bidirectional_attention is not supported.')
  bias = config.attention_bias
  return _common(
    config,
    norm_offset=1.0,
    head_norms=head_norms,
    post_norms=True,
    input_bias=bias,
    output_bias=bias,
    embedding_scale=config.hidden_size**0.5,
    attention_scale=config.query_pre_attn_scalar**-0.5,
    attention_cap=config.attn_logit_softcapping,
    logit_cap=config.final_logit_softcapping,
  )


def _gpt2(config):
  for field in ('scale_attn_by_inverse_layer_idx', 'add_cross_attention'):
    if getattr(config, field):
      raise UserError(f'config.json: {field} is not supported for gpt2.')
  return Architecture(
    vocabulary=config.vocab_size,
    width=config.n_embd,
    heads=config.n_head,
    key_heads=config.n_head,
    head_size=config.n_embd // config.n_head,
    hidden=config.n_inner or 4 * config.n_embd,
    max_positions=config.n_positions,
    layers=(Layer(None),) * config.n_layer,
    activation=lookup(ACTIVATIONS, 'activation_function', config.activation_function),
    gated=False,
    norm='layer',
    norm_epsilon=config.layer_norm_epsilon,
    input_bias=True,
    output_bias=True,
    hidden_bias=True,
    learned_positions=True,
    attention_scale=None if config.scale_attn_weights else 1.0,
    tied=config.tie_word_embeddings,
  )


FAMILIES: dict[str, Callable[[Any], Architecture]] = {
  'llama': _llama,
  'mistral': _common,
  'qwen2': _qwen2,
  'qwen3': _qwen3,
  'gemma2': lambda config: _gemma(config, head_norms=False),
  'gemma3_text': lambda config: _gemma(config, head_norms=True),
  'gpt2': _gpt2,
}

ACTIVATIONS = {
  'silu': 'silu',
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
}


def _layers(config) -> tuple[Layer, ...]:
  """Rotary positions and window of each layer; without `layer_types` all layers are alike."""
  window = _own(config, 'sliding_window')
  kind = 'full_attention' if window is None else 'sliding_attention'
  kinds = _own(config, 'layer_types') or [kind] * config.num_hidden_layers
  windows = {'full_attention': None, 'sliding_attention': window}
  if window is None and 'sliding_attention' in kinds:
    raise UserError("config.json: layer_types has 'sliding_attention', but there is no window.")
  of_kind = {
    kind: Layer(_rotary(config.rope_parameters, kind), lookup(windows, 'layer_types', kind))
    for kind in set(kinds)
  }
  return tuple(of_kind[kind] for kind in kinds)


def _rotary(parameters, kind: str) -> Rotary:
  """Rotary positions of a kind of layers; some families have one setting for all kinds."""
  given = parameters.get(kind, parameters)
  scaling = given.get('rope_type', 'default')
  if given.get('partial_rotary_factor', 1.0) != 1.0:
    raise UserError('config.json: partial_rotary_factor is not supported.')
  if scaling == 'llama3':
    return Rotary(given['rope_theta'], llama3=Llama3Scaling(*(given[name] for name in LLAMA3)))
  if scaling not in ('default', 'linear'):
    raise UserError(f"config.json: rope type '{scaling}' is not one of default, linear, llama3.")
  factor = given.get('factor', 1.0) if scaling == 'linear' else 1.0
  return Rotary(given['rope_theta'], factor=factor)


def lookup(table: Mapping[str, Any], field: str, value: str) -> Any:
  """The table's entry for the value of a field of config.json, or UserError."""
  if value not in table:
    raise UserError(f"config.json: {field}='{value}' is not one of {', '.join(table)}.")
  return table[value]
