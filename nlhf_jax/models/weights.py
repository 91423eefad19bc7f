"""Weights in the Hugging Face layout: loaded onto devices tensor by tensor, and saved.

One table a family maps our parameters to tensors. Both directions are strict: a tensor that is
missing, unknown or of another shape is an error that names it.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nlhf_jax import distributed, trees
from nlhf_jax.errors import UserError
from nlhf_jax.models import layers
from nlhf_jax.models.lora import Lora
from nlhf_jax.models.safetensors_files import (
  INDEX,
  WHOLE,
  Stored,
  find_tensors,
  open_tensors,
  print_unread,
  write_tensors,
)
from nlhf_jax.storage import json_lines, model_files
from nlhf_jax.structs import Params

SHARD = 5 * 10**9  # maximum bytes of a file that is written
ROWS = 4096  # of matrices that are compared, at once


class Tensor(NamedTuple):
  """The tensor that holds a parameter, and its layout."""

  name: str
  transposed: bool  # [out, in], as in PyTorch
  part: int | None = None  # the third of the last axis that holds it, in fused projections


_LLAMA = {
  'embed': 'model.embed_tokens',
  'attention_norms': 'model.layers.{}.input_layernorm',
  'attentions/query': 'model.layers.{}.self_attn.q_proj',
  'attentions/key': 'model.layers.{}.self_attn.k_proj',
  'attentions/value': 'model.layers.{}.self_attn.v_proj',
  'attentions/out': 'model.layers.{}.self_attn.o_proj',
  'attentions/query_norm': 'model.layers.{}.self_attn.q_norm',
  'attentions/key_norm': 'model.layers.{}.self_attn.k_norm',
  'feed_forward_norms': 'model.layers.{}.post_attention_layernorm',
  'feed_forwards/gate': 'model.layers.{}.mlp.gate_proj',
  'feed_forwards/up': 'model.layers.{}.mlp.up_proj',
  'feed_forwards/down': 'model.layers.{}.mlp.down_proj',
  'final_norm': 'model.norm',
  'head': 'lm_head',
}
_GEMMA = _LLAMA | {
  'attention_post_norms': 'model.layers.{}.post_attention_layernorm',
  'feed_forward_norms': 'model.layers.{}.pre_feedforward_layernorm',
  'feed_forward_post_norms': 'model.layers.{}.post_feedforward_layernorm',
}
_GPT2 = {
  'embed': 'transformer.wte',
  'position_table': 'transformer.wpe',
  'attention_norms': 'transformer.h.{}.ln_1',
  **{f'attentions/{name}': 'transformer.h.{}.attn.c_attn' for name in ('query', 'key', 'value')},
  'attentions/out': 'transformer.h.{}.attn.c_proj',
  'feed_forward_norms': 'transformer.h.{}.ln_2',
  'feed_forwards/up': 'transformer.h.{}.mlp.c_fc',
  'feed_forwards/down': 'transformer.h.{}.mlp.c_proj',
  'final_norm': 'transformer.ln_f',
  'head': 'lm_head',
}


def _deberta(model: str) -> dict[str, str]:
  """The table of an encoder whose tensors start with this name."""
  layer = f'{model}.encoder.layer.{{}}'
  return {
    'embed': f'{model}.embeddings.word_embeddings',
    'absolute': f'{model}.embeddings.position_embeddings',
    'types': f'{model}.embeddings.token_type_embeddings',
    'widen': f'{model}.embeddings.embed_proj',
    'embed_norm': f'{model}.embeddings.LayerNorm',
    'relative': f'{model}.encoder.rel_embeddings',
    'relative_norm': f'{model}.encoder.LayerNorm',
    'convolution': f'{model}.encoder.conv.conv',
    'convolution_norm': f'{model}.encoder.conv.LayerNorm',
    'attentions/query': f'{layer}.attention.self.query_proj',
    'attentions/key': f'{layer}.attention.self.key_proj',
    'attentions/value': f'{layer}.attention.self.value_proj',
    'attentions/position_key': f'{layer}.attention.self.pos_key_proj',
    'attentions/position_query': f'{layer}.attention.self.pos_query_proj',
    'attentions/out': f'{layer}.attention.output.dense',
    'attention_norms': f'{layer}.attention.output.LayerNorm',
    'feed_forwards/up': f'{layer}.intermediate.dense',
    'feed_forwards/down': f'{layer}.output.dense',
    'feed_forward_norms': f'{layer}.output.LayerNorm',
  }


_PAIRRM = {f'encoder/{path}': name for path, name in _deberta('pretrained_model').items()} | {
  'head/hidden': 'head_layer.1',
  'head/score': 'head_layer.4',
}
TABLES = {
  'llama': _LLAMA,
  'mistral': _LLAMA,
  'qwen2': _LLAMA,
  'qwen3': _LLAMA,
  'gemma2': _GEMMA,
  'gemma3_text': _GEMMA,
  'gpt2': _GPT2,
  'deberta-v2': _deberta('deberta'),
  'pairrm': _PAIRRM,
}
_FUSED = ('query', 'key', 'value')
DTYPES = ('F64', 'F32', 'F16', 'BF16')  # the others are parts of quantised weights


def tensor(path: str, family: str) -> Tensor:
  """The tensor that holds the parameter at `path`, as `attentions_0/query/kernel`."""
  module, kind = path.rsplit('/', 1)
  number = re.search(r'_(\d+)(/|$)', module)
  name = TABLES[family][re.sub(r'_\d+(/|$)', r'\1', module)].format(number and number[1])
  # GPT-2 stores kernels as we do, except its head, and fuses queries, keys and values.
  transposed = kind == 'kernel' and (family != 'gpt2' or module == 'head')
  part = _FUSED.index(module.rsplit('/')[-1]) if name.endswith('c_attn') else None
  return Tensor(f'{name}.{"bias" if kind == "bias" else "weight"}', transposed, part)


def load(
  folder: Path,
  family: str,
  shapes: Params,
  place: Callable[[str, jax.ShapeDtypeStruct], jax.sharding.Sharding],
) -> Params:
  """The parameters in the safetensors files of a folder.

  One file is open at a time, and each part of a parameter that a device of this process holds is
  read once, so that the host never holds more than these parts of one parameter.

  Args:
    folder: contains `model.safetensors`, or several files and their index.
    family: `model_type` of its config.
    shapes: the shape and dtype of every parameter.
    place: path and shape of a parameter -> its sharding.

  Raises:
    UserError: if a file cannot be read, or its tensors do not fit the architecture.
  """
  found = find_tensors(folder)
  if 'head' not in shapes:  # tied to the embedding
    _remove_tied_head(folder, family, found)
  numbered = trees.flatten(layers.unstack(shapes))
  flat = {path: (leaf, tensor(path, family)) for path, leaf in numbered.items()}
  flat = {
    path: (leaf, at._replace(name=_stored_name(at.name, found)))
    for path, (leaf, at) in flat.items()
  }
  _check(folder, flat, found)
  print_unread(folder, found)

  def read(path, index):
    leaf, at = flat[path]
    with open_tensors(found[at.name].file) as file:
      return _read(file.get_slice(at.name), at, index, leaf)

  def read_layers(path, index, count):
    numbers = range(*index[0].indices(count))
    first = read(layers.numbered_path(path, numbers[0]), index[1:])
    rows = np.empty((len(numbers), *first.shape), first.dtype)
    rows[0] = first
    for row, number in enumerate(numbers[1:], 1):
      rows[row] = read(layers.numbered_path(path, number), index[1:])
    return rows

  def load_one(path, leaf):
    parts = {}  # devices may hold the same part

    def part(index):
      key = str(index)
      if key not in parts:
        stacked = layers.in_stacked(path)
        parts[key] = read_layers(path, index, leaf.shape[0]) if stacked else read(path, index)
      return parts[key]

    return jax.make_array_from_callback(leaf.shape, place(path, leaf), part)

  return trees.unflatten(
    {path: load_one(path, leaf) for path, leaf in trees.flatten(shapes).items()}
  )


def save(folder: Path, family: str, params: Params, dtype: Any, most: int = SHARD) -> None:
  """Saves parameters in the layout that `load` reads, in files of about `most` bytes."""
  whole: dict[str, dict[int | None, str]] = {}
  flat = trees.flatten(layers.unstack(params))
  for path in flat:
    at = tensor(path, family)
    whole.setdefault(at.name, {})[at.part] = path
  groups, size = [[]], 0
  for name, parts in whole.items():
    bytes_ = sum(flat[path].size for path in parts.values()) * np.dtype(dtype).itemsize
    if groups[-1] and size + bytes_ > most:
      groups.append([])
      size = 0
    groups[-1].append(name)
    size += bytes_

  def written(name):
    parts = [
      _transpose(distributed.fetch(flat[path]), tensor(path, family))
      for _, path in sorted(whole[name].items(), key=str)
    ]
    return np.ascontiguousarray(np.concatenate(parts, axis=-1)).astype(dtype)

  where, total = {}, 0
  for number, names in enumerate(groups, 1):
    file = f'model-{number:05}-of-{len(groups):05}.safetensors' if groups[1:] else WHOLE
    content = {name: written(name) for name in names}
    total += sum(value.nbytes for value in content.values())
    with json_lines.atomic_write(folder / file) as draft:
      if distributed.is_first():
        write_tensors(draft, content)
    where |= dict.fromkeys(names, file)
  if groups[1:]:
    index = {'metadata': {'total_size': total}, 'weight_map': where}
    json_lines.write_json(folder / INDEX, index)
  if distributed.is_first():  # weights that were there before, which other programs would read
    kept = {*where.values(), *([INDEX] if groups[1:] else [])}
    for old in [folder / INDEX, *folder.glob('model*.safetensors')]:
      if old.name not in kept:
        old.unlink(missing_ok=True)


def save_adapter(folder: Path, family: str, params: Params, lora: Lora, base: str) -> None:
  """Saves the adapter among the parameters in PEFT's layout; `base` names the adapted model."""
  leaves = trees.flatten(layers.unstack(params))
  of_module: dict[str, dict[int | None, tuple]] = {}
  for path in leaves:
    if path.endswith('/lora_a'):
      layer = path.removesuffix('/lora_a')
      at = tensor(f'{layer}/kernel', family)
      pair = tuple(
        np.float32(distributed.fetch(leaves[f'{layer}/{name}'])) for name in ('lora_a', 'lora_b')
      )
      of_module.setdefault(at.name.removesuffix('.weight'), {})[at.part] = pair
  tensors, ranks = {}, {}
  for module, parts in of_module.items():
    a, b = parts[None] if None in parts else _fuse_adapters(parts)
    tensors[f'base_model.model.{module}.lora_A.weight'] = np.ascontiguousarray(a.T)
    tensors[f'base_model.model.{module}.lora_B.weight'] = np.ascontiguousarray(b.T)
    if a.shape[1] != lora.rank:
      ranks[module] = a.shape[1]
  # GPT-2 uses names such as c_proj for several layers of a block.
  last = 2 if family == 'gpt2' else 1
  config = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base,
    'r': lora.rank,
    'lora_alpha': lora.alpha,
    'lora_dropout': 0.0,
    'bias': 'none',
    'fan_in_fan_out': family == 'gpt2',
    'inference_mode': True,
    'target_modules': sorted({'.'.join(module.split('.')[-last:]) for module in of_module}),
    'rank_pattern': ranks,
    'alpha_pattern': {module: lora.scale * rank for module, rank in ranks.items()},
  }
  with json_lines.atomic_write(folder / 'adapter_model.safetensors') as draft:
    write_tensors(draft, tensors)
  json_lines.write_json(folder / 'adapter_config.json', config)


def _fuse_adapters(
  parts: Mapping[int, tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
  """The adapter of a fused projection from those of its thirds, each for its own columns."""
  a = np.concatenate([a for a, _ in parts.values()], axis=1)
  size = next(iter(parts.values()))[1].shape[1]
  b, start = np.zeros((a.shape[1], size * len(_FUSED)), a.dtype), 0
  for part, (_, of_part) in parts.items():
    rank = len(of_part)
    b[start : start + rank, part * size : (part + 1) * size] = of_part
    start += rank
  return a, b


def _remove_tied_head(folder: Path, family: str, found: dict[str, Stored]) -> None:
  """Removes the head from what a folder holds, if it equals the embedding that it is tied to.

  Raises:
    UserError: if the head differs from the embedding.
  """
  embedding = _stored_name(tensor('embed/embedding', family).name, found)
  head = found.pop('lm_head.weight', None)
  if head is None or embedding not in found:
    return
  with open_tensors(head.file) as one, open_tensors(found[embedding].file) as other:
    left, right = one.get_slice('lm_head.weight'), other.get_slice(embedding)
    starts = range(0, *head.shape[:1], ROWS)
    equal = head[1:] == found[embedding][1:] and all(
      np.array_equal(left[start:stop], right[start:stop])
      for start, stop in zip(starts, [*starts[1:], *head.shape[:1]], strict=True)
    )
  if not equal:
    raise UserError(
      f'{folder}: the config ties the output head to the embedding, but the files hold '
      f"'lm_head.weight' with other values than '{embedding}'; set tie_word_embeddings to false in "
      'config.json, or remove the head.'
    )


def _stored_name(name: str, found: Mapping) -> str:
  """The name as it is in the files: some omit its first component."""
  bare = name.split('.', 1)[1]
  return bare if name not in found and bare in found else name


def _check(folder, flat, found: Mapping[str, Stored]) -> None:
  """Raises UserError that names tensors that are missing, unknown, of another shape or type."""
  needed = {at.name for _, at in flat.values()}
  for name, stored in found.items():
    if stored.dtype not in DTYPES:
      raise UserError(
        f"{folder}: '{name}' is stored as {stored.dtype}; quantised weights are not read: give the "
        'model in bfloat16, float16 or float32.'
      )
  problems = [f"'{name}' is missing" for name in sorted(needed - set(found))]
  problems += [f"'{name}' is unknown" for name in sorted(set(found) - needed)]
  for leaf, at in flat.values():
    if at.name in found:
      shape = (*leaf.shape[:-1], leaf.shape[-1] * (1 if at.part is None else len(_FUSED)))
      shape = shape[::-1] if at.transposed else shape
      if shape != found[at.name].shape:
        problems.append(f"'{at.name}' has shape {found[at.name].shape}, not {shape}")
  if problems:
    more = f', and {len(problems) - 5} more' if len(problems) > 5 else ''
    raise UserError(
      f'{folder}: the weights do not fit the config: {", ".join(problems[:5])}{more}.'
    )


def _read(source, at: Tensor, index: tuple[slice, ...], leaf) -> np.ndarray:
  """One device's part of a parameter, in the parameter's dtype."""
  starts = [range(*part.indices(size)) for part, size in zip(index, leaf.shape, strict=True)]
  index = [slice(part.start, part.stop) for part in starts]
  if at.part is not None:
    shift = at.part * leaf.shape[-1]
    index[-1] = slice(index[-1].start + shift, index[-1].stop + shift)
  part = source[tuple(index[::-1] if at.transposed else index)]
  model_files.count_read(part.nbytes)
  return _transpose(part, at).astype(leaf.dtype)


def _transpose(matrix: np.ndarray, at: Tensor) -> np.ndarray:
  return matrix.T if at.transposed else matrix
