"""The metadata of a GGUF file as a Hugging Face config.

Strict: a setting that is unknown here, and not off, is an error that names it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from nlhf_jax.errors import UserError

ROPE_FACTORS = 'rope_freqs.weight'  # a tensor: what each rotary frequency is divided by

SIZES = {
  'hidden_size': 'embedding_length',
  'intermediate_size': 'feed_forward_length',
  'num_hidden_layers': 'block_count',
  'num_attention_heads': 'attention.head_count',
  'max_position_embeddings': 'context_length',
}
# Read below, or of no consequence.
KNOWN = {
  *SIZES.values(),
  'vocab_size',
  'tensor_data_layout',
  'attention.causal',
  'attention.head_count_kv',
  'attention.key_length',
  'attention.value_length',
  'attention.layer_norm_rms_epsilon',
  'rope.dimension_count',
  'rope.freq_base',
}
SCALING = {'rope.scaling.type', 'rope.scaling.factor', 'rope.scaling.original_context_length'}
GEMMA = {'attn_logit_softcapping', 'final_logit_softcapping', 'attention.sliding_window_pattern'}
GPT2 = {*SIZES.values(), 'vocab_size', 'attention.layer_norm_epsilon', 'attention.causal'}
WINDOW = {'attention.sliding_window'}


def make_config(metadata: Any) -> dict[str, Any]:
  """The content of config.json.

  Args:
    metadata: a `gguf_files.Metadata`.

  Raises:
    UserError: if a setting is missing or not supported.
  """
  make, known = FAMILIES[metadata.architecture]
  for key, value in metadata.settings().items():
    # Zero, false and 'none' turn a setting off.
    if key not in known and value not in (0, '', 'none'):
      raise UserError(
        f"{metadata.path}: the setting '{metadata.architecture}.{key}'={value} is not supported."
      )
  tied = 'output.weight' not in metadata.shapes
  vocabulary = metadata.shapes.get('token_embd.weight', (0,))[0]
  general = {'vocab_size': vocabulary, 'tie_word_embeddings': tied, 'dtype': 'float32'}
  for name in ('bos', 'eos'):
    general[f'{name}_token_id'] = metadata.value(f'tokenizer.ggml.{name}_token_id', None)
  return make(metadata) | general


def _common(metadata, model_type: str, **differences: Any) -> dict[str, Any]:
  """The fields that the families after GPT-2 share."""
  heads, width = metadata.get('attention.head_count'), metadata.get('embedding_length')
  size = metadata.get('attention.key_length', width // heads)
  rotated = metadata.get('rope.dimension_count', size)
  if rotated != size or metadata.get('attention.value_length', size) != size:
    raise UserError(
      f'{metadata.path}: heads of {size} dimensions of which {rotated} are rotated, or with values '
      'of another size, are not supported.'
    )
  return {
    'model_type': model_type,
    **{name: metadata.get(key) for name, key in SIZES.items()},
    'num_key_value_heads': metadata.get('attention.head_count_kv', heads),
    'head_dim': size,
    'rms_norm_eps': metadata.get('attention.layer_norm_rms_epsilon'),
    'rope_parameters': _rope(metadata, size),
    **differences,
  }


def _llama(metadata):
  biases = {
    'attention_bias': 'blk.0.attn_q.bias' in metadata.shapes,
    'mlp_bias': 'blk.0.ffn_up.bias' in metadata.shapes,
  }
  window = metadata.get('attention.sliding_window', 0)
  if window:  # the file format has no family of its own for Mistral
    return _common(metadata, 'mistral', sliding_window=window, architectures=['MistralForCausalLM'])
  return _common(metadata, 'llama', architectures=['LlamaForCausalLM'], **biases)


def _qwen2(metadata):
  return _common(metadata, 'qwen2', architectures=['Qwen2ForCausalLM'])


def _qwen3(metadata):
  bias = 'blk.0.attn_q.bias' in metadata.shapes
  return _common(metadata, 'qwen3', architectures=['Qwen3ForCausalLM'], attention_bias=bias)


def _gemma(metadata, model_type, name, largest, pattern):
  """`largest`: layers of the largest model, which alone divides by width / heads (llama.cpp)."""
  config = _common(metadata, model_type, architectures=[f'{name}ForCausalLM'])
  layers, size = config['num_hidden_layers'], config['head_dim']
  pattern = metadata.get('attention.sliding_window_pattern', pattern)
  if isinstance(pattern, int):
    pattern = [bool((layer + 1) % pattern) for layer in range(layers)]
  if layers == largest:
    size = config['hidden_size'] // config['num_attention_heads']
  return config | {
    'sliding_window': metadata.get('attention.sliding_window'),
    'layer_types': [
      'sliding_attention' if sliding else 'full_attention' for sliding in pattern[:layers]
    ],
    'query_pre_attn_scalar': size,
    'attn_logit_softcapping': metadata.get('attn_logit_softcapping', None),
    'final_logit_softcapping': metadata.get('final_logit_softcapping', None),
  }


def _gemma2(metadata):
  return _gemma(metadata, 'gemma2', 'Gemma2', largest=46, pattern=2)


def _gemma3(metadata):
  config = _gemma(metadata, 'gemma3_text', 'Gemma3', largest=62, pattern=6)
  local = {'rope_type': 'default', 'rope_theta': metadata.get('rope.freq_base_swa', 10_000.0)}
  kinds = {'full_attention': config['rope_parameters'], 'sliding_attention': local}
  return config | {'rope_parameters': kinds}


def _gpt2(metadata):
  return {
    'model_type': 'gpt2',
    'architectures': ['GPT2LMHeadModel'],
    'n_embd': metadata.get('embedding_length'),
    'n_layer': metadata.get('block_count'),
    'n_head': metadata.get('attention.head_count'),
    'n_positions': metadata.get('context_length'),
    'n_inner': metadata.get('feed_forward_length'),
    'layer_norm_epsilon': metadata.get('attention.layer_norm_epsilon'),
    'activation_function': 'gelu_new',
  }


FAMILIES: dict[str, tuple[Callable[[Any], dict], set[str]]] = {
  'llama': (_llama, KNOWN | SCALING | WINDOW),
  'qwen2': (_qwen2, KNOWN | SCALING),
  'qwen3': (_qwen3, KNOWN | SCALING),
  'gemma2': (_gemma2, KNOWN | SCALING | WINDOW | GEMMA),
  'gemma3': (_gemma3, KNOWN | SCALING | WINDOW | GEMMA | {'rope.freq_base_swa'}),
  'gpt2': (_gpt2, GPT2),
}


def _rope(metadata, size: int) -> dict[str, Any]:
  """Rotary positions; the file has Llama 3's scaling as a factor for each frequency."""
  base, kind = metadata.get('rope.freq_base', 10_000.0), metadata.get('rope.scaling.type', 'none')
  if metadata.factors is not None:
    return _llama3(metadata, base, size)
  if kind == 'linear':
    factor = metadata.get('rope.scaling.factor')
    return {'rope_type': 'linear', 'rope_theta': base, 'factor': factor}
  if kind not in ('none', ''):
    raise UserError(f"{metadata.path}: rotary scaling of type '{kind}' is not supported.")
  return {'rope_type': 'default', 'rope_theta': base}


def _llama3(metadata, base: float, size: int) -> dict[str, Any]:
  """The settings of Llama 3.1 and later, if they give the factors in the file."""
  factors, original = np.asarray(metadata.factors), 8192
  factor, low, high = float(factors.max()), 1.0, 4.0
  frequencies = base ** (-np.arange(size // 2) / (size // 2))
  kept = np.clip((original * frequencies / (2 * np.pi) - low) / (high - low), 0, 1)
  if factors.shape != kept.shape or not np.allclose(
    factors, 1 / (kept + (1 - kept) / factor), rtol=1e-4
  ):
    raise UserError(
      f"{metadata.path}: the rotary factors in '{ROPE_FACTORS}' are not those of Llama 3, and no "
      'others are supported.'
    )
  return {
    'rope_type': 'llama3',
    'rope_theta': base,
    'factor': factor,
    'low_freq_factor': low,
    'high_freq_factor': high,
    'original_max_position_embeddings': original,
  }
