"""Malformed folders of models: indices of shards, configs and tensors that do not belong there."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

INDEX = 'model.safetensors.index.json'
NORM, QUERY = 'model.norm.weight', 'model.layers.0.self_attn.q_proj.weight'
HEAD, EMBEDDING = 'lm_head.weight', 'model.embed_tokens.weight'
VALUES = (None, -1, 0, 1, 2**31, 10**20, 1.5, float('nan'), float('inf'), 'text', True, [], {})
FIELDS = (
  'vocab_size',
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
  'num_key_value_heads',
  'head_dim',
  'max_position_embeddings',
  'rms_norm_eps',
  'hidden_act',
  'rope_parameters',
  'attention_bias',
  'tie_word_embeddings',
  'model_type',
)
ROTARY = (
  'rope_theta',
  'rope_type',
  'factor',
  'low_freq_factor',
  'high_freq_factor',
  'original_max_position_embeddings',
)

Change = Callable[[Path], None]  # of a folder with config.json, three shards and their index


def changed_indices() -> Iterator[tuple[str, Change]]:
  """Contents of the index: those that are no index, and those that name other files."""
  texts = ('', '[]', 'null', '3', '"weight_map"', '{', '{"weight_map"', '\x00\xff', '[' * 100_000)
  for text in texts:
    yield f'index {text[:20]!r}', _write_index(text)
  for value in (None, 3, 'model', [], ['model.safetensors'], {}):
    yield f'weight_map {value}', _write_index(json.dumps({'weight_map': value}))
  yield 'no weight_map', _write_index('{"metadata": {}}')
  yield 'no text', lambda folder: (folder / INDEX).write_bytes(b'\xff\xfe\x00{')
  names = (
    '',
    '.',
    '..',
    '../model.safetensors',
    '/dev/zero',
    '/etc/passwd',
    'a/../../b.safetensors',
  )
  names += ('sub/model.safetensors', 'missing.safetensors', 'pytorch_model.bin', 'config.json')
  names += ('\x00.safetensors', 'a' * 300 + '.safetensors', '.safetensors', 'c:\\model.safetensors')
  for name in (*names, None, 3, True, ['model.safetensors'], {'a': 1}):
    yield f'a tensor in {name!r:.30}', _point_norm_to(name)
  yield 'index is a folder', lambda folder: _make_a_folder(folder / INDEX)


def changed_tensors() -> Iterator[tuple[str, Change]]:
  """Tensors and files that are missing, damaged, twice there or of another type."""
  yield from {
    'a shard is missing': lambda folder: _shard(folder, 2).unlink(),
    'a shard is empty': lambda folder: _shard(folder, 2).write_bytes(b''),
    'a shard is cut': lambda folder: _shard(folder, 2).write_bytes(
      _shard(folder, 2).read_bytes()[:-8]
    ),
    'a shard is a header of 2^63': lambda folder: _shard(folder, 2).write_bytes(b'\xff' * 64),
    'a shard is another one': lambda folder: _shard(folder, 2).write_bytes(
      _shard(folder, 1).read_bytes()
    ),
    'a shard is a folder': lambda folder: _make_a_folder(_shard(folder, 2)),
    'all shards are missing': lambda folder: [_shard(folder, n).unlink() for n in (1, 2, 3)],
    'a tensor is missing': _edit(lambda tensors: tensors.pop(NORM)),
    'a tensor is unknown': _edit(lambda tensors: tensors.update(odd=torch.ones(3))),
    'a layer is unknown': _edit(
      lambda tensors: tensors.update({QUERY.replace('.0.', '.7.'): tensors[QUERY]})
    ),
    'a bias is unknown': _edit(
      lambda tensors: tensors.update({QUERY.replace('weight', 'bias'): torch.ones(24)})
    ),
    'a tensor has two names': _edit(
      lambda tensors: tensors.update({NORM.removeprefix('model.'): tensors[NORM]})
    ),
    'a tensor is transposed': _edit(
      lambda tensors: tensors.update({EMBEDDING: tensors[EMBEDDING].T.contiguous()})
    ),
    'a tensor is too long': _edit(lambda tensors: tensors.update({NORM: torch.ones(25)})),
    'a tensor is a number': _edit(lambda tensors: tensors.update({NORM: torch.tensor(1.0)})),
    'a tensor is empty': _edit(lambda tensors: tensors.update({NORM: torch.ones(0)})),
  }.items()
  for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.bool):
    yield (
      f'a tensor is {dtype}',
      _edit(lambda tensors, dtype=dtype: tensors.update({QUERY: tensors[QUERY].to(dtype)})),
    )
  yield 'a tensor is in two shards', _repeat_norm(1.0)
  yield 'a tensor is in two shards with other values', _repeat_norm(2.0)
  yield 'a head is tied to other values', _tie_to_another_head


def changed_configs() -> Iterator[tuple[str, Change]]:
  """Configs that are none, and fields with values of every kind."""
  for text in ('', '[]', 'null', '3', '{', '\x00', '[' * 100_000, '{}'):
    yield f'config {text[:20]!r}', lambda folder, text=text: _config(folder).write_text(text)
  for field in FIELDS:
    for value in VALUES:
      yield f'{field}={value!r:.20}', _set(**{field: value})
  for field in ROTARY:
    for value in VALUES:
      yield f'rope_parameters.{field}={value!r:.20}', _set_rotary(field, value)
  for fields in (
    dict(sliding_window=4),
    dict(layer_types=['sliding_attention'] * 2),
    dict(hidden_activation='gelu'),
    dict(quantization_config={'quant_method': 'fp8'}),
    dict(per_layer_config={'0': {'num_attention_heads': 2}}),
    dict(auto_map={'AutoConfig': 'code.Config'}),
    dict(num_attention_heads=5, num_key_value_heads=2),
  ):
    yield f'{fields}'[:60], _set(**fields)


def _config(folder):
  return folder / 'config.json'


def _shard(folder, number):
  return next(folder.glob(f'model-0000{number}-*'))


def _write_index(text) -> Change:
  return lambda folder: (folder / INDEX).write_text(text)


def _point_norm_to(name) -> Change:
  def change(folder):
    index = json.loads((folder / INDEX).read_text())
    index['weight_map'][NORM] = name
    (folder / INDEX).write_text(json.dumps(index))

  return change


def _make_a_folder(path):
  path.unlink()
  path.mkdir()


def _edit(change) -> Change:
  """Changes the tensors, which are then in one file."""

  def edit(folder):
    tensors = {}
    for path in folder.glob('*.safetensors'):
      tensors |= load_file(path)
      path.unlink()
    (folder / INDEX).unlink()
    change(tensors)
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(copies, folder / 'model.safetensors')

  return edit


def _repeat_norm(factor) -> Change:
  def change(folder):
    shards = [_shard(folder, number) for number in (1, 2, 3)]
    tensors = {path: load_file(path) for path in shards}
    norm = next(each[NORM] for each in tensors.values() if NORM in each)
    other = next(path for path, each in tensors.items() if NORM not in each)
    save_file(tensors[other] | {NORM: norm * factor}, other)

  return change


def _tie_to_another_head(folder):
  _edit(lambda tensors: tensors.update({HEAD: tensors[EMBEDDING] + 1}))(folder)
  _set(tie_word_embeddings=True)(folder)


def _set(**fields) -> Change:
  def change(folder):
    content = json.loads(_config(folder).read_text()) | fields
    _config(folder).write_text(json.dumps(content))

  return change


def _set_rotary(field, value) -> Change:
  def change(folder):
    content = json.loads(_config(folder).read_text())
    content['rope_parameters'][field] = value
    _config(folder).write_text(json.dumps(content))

  return change
