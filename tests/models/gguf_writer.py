"""Writes GGUF files of small models as llama.cpp's conversion does."""

import string

import gguf
import numpy as np

TOKENS = 67  # of the models of `families`
BYTES = [f'<0x{byte:02X}>' for byte in range(8)]


def write(
  path, model, architecture, half=False, blocks=False, more='', settings=None, tokenizer=None
):
  """Writes a model of `transformers` with its settings and a tokenizer; `settings` win.

  `half` and `blocks` write kernels in 16 bits, and in 8 bits a block; `more` is another tensor.
  """
  config, rope = model.config, getattr(model.config, 'rope_parameters', None)
  writer = gguf.GGUFWriter(path, architecture)
  values = SETTINGS[architecture](config)
  if rope and 'full_attention' in rope:
    values['rope.freq_base_swa'] = rope['sliding_attention']['rope_theta']
    rope = rope['full_attention']
  if rope:
    values['rope.freq_base'] = rope['rope_theta']
    if rope['rope_type'] == 'linear':
      values |= {'rope.scaling.type': 'linear', 'rope.scaling.factor': rope['factor']}
    if rope['rope_type'] == 'llama3':
      writer.add_tensor('rope_freqs.weight', llama3_factors(rope, config.head_dim))
  for key, value in {**values, **(settings or {})}.items():
    add(writer, key if key.startswith('split.') else f'{architecture}.{key}', value)
  for key, value in (tokenizer or byte_tokenizer()).items():
    add(writer, f'tokenizer.{key}', value)
  names = gguf.get_tensor_name_map(
    next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), 8
  )
  for name, tensor in model.state_dict().items():
    if name == 'lm_head.weight' and config.tie_word_embeddings:
      continue
    own = names.get_name(name, try_suffixes=('.weight', '.bias'))
    array = convert(own, tensor.numpy(), architecture, config)
    array = np.ascontiguousarray(array, np.float16 if half and array.ndim == 2 else np.float32)
    if blocks and array.ndim == 2 and array.shape[1] % 32 == 0:
      kind = gguf.GGMLQuantizationType.Q8_0
      writer.add_tensor(own, gguf.quants.quantize(array, kind), raw_dtype=kind)
    else:
      writer.add_tensor(own, array)
  if more:
    writer.add_tensor(more, np.ones((2, 2), np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def add(writer, key, value):
  """Adds a value in the type that the format has for it."""
  kinds = {bool: 'bool', int: 'uint32', float: 'float32', str: 'string', list: 'array'}
  getattr(writer, f'add_{kinds[type(value)]}')(key, value)


def convert(name, array, architecture, config):
  """A tensor as it lies in the file."""
  base = name.split('.')[-2]
  if architecture == 'llama' and base in ('attn_q', 'attn_k'):
    heads = config.num_attention_heads if base == 'attn_q' else config.num_key_value_heads
    halves = array.reshape(heads, 2, -1, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)
  if architecture.startswith('gemma') and name.endswith('norm.weight'):
    return array + 1
  if architecture == 'gpt2' and base in ('attn_qkv', 'attn_output', 'ffn_up', 'ffn_down'):
    return array.T
  return array


def llama3_factors(rope, size):
  """What the rotary frequencies are divided by (llama.cpp's `generate_extra_tensors`)."""
  low = rope['original_max_position_embeddings'] / rope['low_freq_factor']
  high = rope['original_max_position_embeddings'] / rope['high_freq_factor']
  factors = []
  for number in range(0, size, 2):
    wavelength = 2 * np.pi * rope['rope_theta'] ** (number / size)
    smooth = (rope['original_max_position_embeddings'] / wavelength - rope['low_freq_factor']) / (
      rope['high_freq_factor'] - rope['low_freq_factor']
    )
    if wavelength < high:
      factors.append(1.0)
    elif wavelength > low:
      factors.append(rope['factor'])
    else:
      factors.append(1 / ((1 - smooth) / rope['factor'] + smooth))
  return np.array(factors, np.float32)


def byte_tokenizer(**changes):
  """A byte-level tokenizer of 67 tokens: two of them special, and no merges but one."""
  letters = ['<', *string.digits, *string.ascii_letters]
  return {
    'ggml.model': 'gpt2',
    'ggml.pre': 'smollm',
    'ggml.tokens': ['<pad>', '<end>', *letters, 'Ġ', '12'],
    'ggml.token_type': [3, 3, *[1] * (TOKENS - 2)],
    'ggml.merges': ['1 2'],
    'ggml.eos_token_id': 1,
    'ggml.padding_token_id': 0,
    'chat_template': '{% for message in messages %}{{ message.content }}<end>{% endfor %}',
  } | changes


def piece_tokenizer():
  """SentencePiece's kind: merges follow from scores, bytes stand for unknown characters."""
  pieces = ['▁', 'a', 'b', 'ab', '▁ab', 'abab']
  tokens = ['<unk>', '<s>', '</s>', *BYTES, *pieces]
  tokens += [f'<unused{number}>' for number in range(TOKENS - len(tokens))]
  kinds = [2, 3, 3, *[6] * len(BYTES), *[1] * len(pieces)]
  return {
    'ggml.model': 'llama',
    'ggml.tokens': tokens,
    'ggml.scores': [-float(number) for number in range(TOKENS)],
    'ggml.token_type': kinds + [5] * (TOKENS - len(kinds)),
    'ggml.bos_token_id': 1,
    'ggml.eos_token_id': 2,
    'ggml.unknown_token_id': 0,
  }


def _common(config):
  return {
    'context_length': config.max_position_embeddings,
    'embedding_length': config.hidden_size,
    'feed_forward_length': config.intermediate_size,
    'block_count': config.num_hidden_layers,
    'attention.head_count': config.num_attention_heads,
    'attention.head_count_kv': config.num_key_value_heads,
    'attention.layer_norm_rms_epsilon': config.rms_norm_eps,
  }


def _with_heads(config):
  return _common(config) | {
    'attention.key_length': config.head_dim,
    'attention.value_length': config.head_dim,
    'expert_count': 0,  # written by some, and off
  }


def _llama(config):
  window = getattr(config, 'sliding_window', None)
  windows = {'attention.sliding_window': window} if window else {}
  size = config.head_dim or config.hidden_size // config.num_attention_heads
  sizes = {'attention.key_length': size, 'rope.dimension_count': size, 'vocab_size': TOKENS}
  return _common(config) | sizes | windows


def _gemma2(config):
  return _with_heads(config) | {
    'attn_logit_softcapping': config.attn_logit_softcapping,
    'final_logit_softcapping': config.final_logit_softcapping,
    'attention.sliding_window': config.sliding_window,
  }


def _gemma3(config):
  sliding = [kind == 'sliding_attention' for kind in config.layer_types]
  return _with_heads(config) | {
    'attention.sliding_window': config.sliding_window,
    'attention.sliding_window_pattern': sliding,
  }


def _gpt2(config):
  return {
    'context_length': config.n_positions,
    'embedding_length': config.n_embd,
    'feed_forward_length': 4 * config.n_embd,
    'block_count': config.n_layer,
    'attention.head_count': config.n_head,
    'attention.layer_norm_epsilon': config.layer_norm_epsilon,
  }


SETTINGS = {
  'llama': _llama,
  'qwen2': _common,
  'qwen3': _with_heads,
  'gemma2': _gemma2,
  'gemma3': _gemma3,
  'gpt2': _gpt2,
}
