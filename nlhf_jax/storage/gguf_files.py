"""GGUF files, read as folders in the Hugging Face layout.

Config, tokenizer and chat template are written to a temporary folder from the file's metadata.
Tensors stay in the file; they are dequantised one at a time while weights are loaded, and have the
names, the shapes and the order of elements of the Hugging Face layout. What llama.cpp's conversion
changed is undone (https://github.com/ggml-org/llama.cpp, `convert_hf_to_gguf.py`).
"""

import functools
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nlhf_jax.errors import UserError, first_line
from nlhf_jax.storage import gguf_config, gguf_tokenizer

NAME = 'model.gguf'  # the link to the file in the folder

_LAYER = {
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'attn_q_norm': 'self_attn.q_norm',
  'attn_k_norm': 'self_attn.k_norm',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
_LLAMA = {
  'token_embd': 'model.embed_tokens',
  **{f'blk.{{}}.{ours}': f'model.layers.{{}}.{theirs}' for ours, theirs in _LAYER.items()},
  'output_norm': 'model.norm',
  'output': 'lm_head',
}
_GEMMA = _LLAMA | {
  'blk.{}.post_attention_norm': 'model.layers.{}.post_attention_layernorm',
  'blk.{}.ffn_norm': 'model.layers.{}.pre_feedforward_layernorm',
  'blk.{}.post_ffw_norm': 'model.layers.{}.post_feedforward_layernorm',
}
_GPT2 = {
  'token_embd': 'transformer.wte',
  'position_embd': 'transformer.wpe',
  'blk.{}.attn_norm': 'transformer.h.{}.ln_1',
  'blk.{}.attn_qkv': 'transformer.h.{}.attn.c_attn',
  'blk.{}.attn_output': 'transformer.h.{}.attn.c_proj',
  'blk.{}.ffn_norm': 'transformer.h.{}.ln_2',
  'blk.{}.ffn_up': 'transformer.h.{}.mlp.c_fc',
  'blk.{}.ffn_down': 'transformer.h.{}.mlp.c_proj',
  'output_norm': 'transformer.ln_f',
  'output': 'lm_head',
}
# `general.architecture` -> name of a tensor in the file -> its name in the Hugging Face layout.
TENSORS = {
  'llama': _LLAMA,
  'qwen2': _LLAMA,
  'qwen3': _LLAMA,
  'gemma2': _GEMMA,
  'gemma3': _GEMMA,
  'gpt2': _GPT2,
}


class Slice:
  """One tensor, as safetensors' slices are read; dequantised when it is first indexed."""

  def __init__(self, path: Path, tensor: Any, architecture: str, heads: int):
    self._path, self._tensor = path, tensor
    self._architecture, self._heads = architecture, heads
    self._base = tensor.name.split('.')[-2]
    self._transposed = (
      architecture == 'gpt2' and self._base.startswith(('attn', 'ffn')) and len(tensor.shape) == 2
    )

  def get_shape(self) -> tuple[int, ...]:
    """The shape of the tensor in the Hugging Face layout."""
    shape = tuple(map(int, self._tensor.shape))  # the file's order is Fortran's
    return shape if self._transposed else shape[::-1]

  def get_dtype(self) -> str:
    """The type of the values once they are dequantised, by its name in safetensors files."""
    return 'F32'

  def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
    return self._values[index]

  @functools.cached_property
  def _values(self) -> np.ndarray:
    from gguf import quants

    kind = self._tensor.tensor_type
    try:
      values = quants.dequantize(self._tensor.data, kind)
    except NotImplementedError:
      raise UserError(
        f"{self._path}: the tensor '{self._tensor.name}' is of type {kind.name}, which the package "
        'gguf cannot dequantise; convert the model to another type.'
      ) from None
    if self._architecture == 'llama' and self._base in ('attn_q', 'attn_k'):
      # Rotary pairs are neighbours in the file, and half a head apart here.
      pairs = values.reshape(self._heads, -1, 2, *values.shape[1:])
      values = pairs.swapaxes(1, 2).reshape(values.shape)
    if self._architecture in ('gemma2', 'gemma3') and self._base.endswith('norm'):
      values = values - 1  # the file has the whole scales, our layout their offsets from 1
    return values.T if self._transposed else values


class Tensors:
  """The tensors of a GGUF file, with the methods of `safetensors.safe_open`'s result."""

  def __init__(self, metadata: 'Metadata', tensors: Sequence[Any]):
    self._path = metadata.path
    self._architecture = metadata.architecture
    self._heads = {
      'attn_q': metadata.get('attention.head_count'),
      'attn_k': metadata.get('attention.head_count_kv', metadata.get('attention.head_count')),
    }
    self._tensors = {
      _rename(tensor.name, TENSORS[self._architecture]): tensor
      for tensor in tensors
      if tensor.name != gguf_config.ROPE_FACTORS  # a setting: `gguf_config` reads it
    }

  def keys(self) -> list[str]:
    """Names in the Hugging Face layout; a tensor that it does not have keeps its own."""
    return list(self._tensors)

  def get_slice(self, name: str) -> Slice:
    """A tensor by its name."""
    tensor = self._tensors[name]
    heads = self._heads.get(tensor.name.split('.')[-2], 1)
    return Slice(self._path, tensor, self._architecture, heads)


def read_tensors(path: Path) -> Tensors:
  """The tensors of the file at the end of a link that `unpack` made."""
  return _read(path.readlink()).tensors


class Metadata:
  """The metadata of a GGUF file, by key."""

  def __init__(self, path: Path, reader: Any):
    self.path, self._fields = path, reader.fields
    self.shapes = {one.name: tuple(map(int, one.shape[::-1])) for one in reader.tensors}
    self.factors = next(
      (t.data for t in reader.tensors if t.name == gguf_config.ROPE_FACTORS), None
    )
    self.architecture = self.value('general.architecture')
    if self.architecture not in TENSORS:
      raise UserError(
        f"{path}: models of type '{self.architecture}' are not supported; use one of "
        f'{", ".join(TENSORS)}.'
      )
    if self.value('split.count', 1) > 1:
      raise UserError(
        f"{path}: one of {self.value('split.count')} parts of a model; join them with llama.cpp's "
        'gguf-split --merge.'
      )

  def value(self, key: str, *default: Any) -> Any:
    """The value of a key, or the default if it is missing."""
    if key in self._fields:
      return self._fields[key].contents()
    if default:
      return default[0]
    raise UserError(f"{self.path}: its metadata lack '{key}'; convert the model again.")

  def get(self, key: str, *default: Any) -> Any:
    """The value of a key of the architecture, or the default if it is missing."""
    return self.value(f'{self.architecture}.{key}', *default)

  def settings(self) -> Mapping[str, Any]:
    """Every setting of the architecture."""
    prefix = f'{self.architecture}.'
    keys = [key for key in self._fields if key.startswith(prefix)]
    return {key.removeprefix(prefix): self.value(key) for key in keys}


class Unpacked(NamedTuple):
  """What is read of a GGUF file, once in a process."""

  folder: tempfile.TemporaryDirectory
  tensors: Tensors


def unpack(path: Path) -> Path:
  """The folder of a GGUF file: config, tokenizer, and a link to the file.

  It is made once in a process, and removed when the process ends.

  Raises:
    UserError: if the file or its metadata cannot be used, or the package gguf is missing.
  """
  return Path(_read(path.absolute()).folder.name)


def _read(path: Path) -> Unpacked:
  status = path.stat()
  return _unpack(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache
def _unpack(path: Path, time: int, size: int) -> Unpacked:
  del time, size  # a file that was replaced is read again
  reader = _open(path)
  metadata = Metadata(path, reader)
  files = {'config.json': gguf_config.make_config(metadata)} | gguf_tokenizer.make_files(metadata)
  folder = tempfile.TemporaryDirectory(prefix='nlhf-gguf-')
  for name, content in files.items():
    text = content if isinstance(content, str) else json.dumps(content, indent=2)
    Path(folder.name, name).write_text(text, encoding='utf-8')
  os.symlink(path, Path(folder.name, NAME))
  return Unpacked(folder, Tensors(metadata, reader.tensors))


def _open(path: Path) -> Any:
  try:
    from gguf import GGUFReader
  except ImportError:
    raise UserError(
      f"{path}: GGUF files need the package gguf; run pip install '.[gguf]' in a checkout."
    ) from None

  class Reader(GGUFReader):
    """Reads metadata from a plain view of the file: slices of a memmap cost three times as much."""

    @property
    def data(self):
      return self._data

    @data.setter
    def data(self, mapped):
      self._data = mapped.view(np.ndarray)

  try:
    return Reader(path)
  except Exception as error:  # a broken file raises anything
    raise UserError(
      f'{path}: no GGUF file, or cut short ({first_line(error)}); download it again.'
    ) from None


def _rename(name: str, table: Mapping[str, str]) -> str:
  base, _, kind = name.rpartition('.')
  number = re.match(r'blk\.(\d+)\.', base)
  pattern = re.sub(r'^blk\.\d+\.', 'blk.{}.', base)
  return f'{table[pattern].format(number and number[1])}.{kind}' if pattern in table else name
