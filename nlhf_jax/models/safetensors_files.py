"""The safetensors files of a model: which of them are read, what they hold, and writing them."""

import contextlib
import errno
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from nlhf_jax.errors import UserError, first_line
from nlhf_jax.storage import gguf_files

WHOLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
# Buffers in older files, which are not weights.
_BUFFERS = re.compile(r'\.attn\.(masked_)?bias$|rotary_emb\.inv_freq$|embeddings\.position_ids$')


class Stored(NamedTuple):
  """A tensor in a file; `dtype` is its name in the file, such as BF16."""

  file: Path
  shape: tuple[int, ...]
  dtype: str


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a safetensors file that everyone may read.

  Raises:
    OSError: if it cannot be written.
  """
  try:
    safetensors.numpy.save_file(dict(tensors), path, metadata={'format': 'pt'})
  except safetensors.SafetensorError as error:
    raise OSError(errno.EIO, str(error), str(path)) from None
  path.chmod(0o644)  # the library writes for the user alone


def _files(folder: Path) -> list[Path]:
  """The files of a folder; as for `transformers`, a whole file precedes shards."""
  if (folder / gguf_files.NAME).exists():
    return [folder / gguf_files.NAME]
  if (folder / WHOLE).exists():
    return [folder / WHOLE]
  if (folder / INDEX).exists():
    return [folder / name for name in _read_index(folder / INDEX)]
  raise UserError(
    f'{folder}: there is neither {WHOLE} nor {INDEX}; convert weights in other formats with '
    'save_pretrained of transformers.'
  )


def _read_index(path: Path) -> list[str]:
  """The names of the files of an index, which are in its folder."""
  try:
    names = list(json.loads(path.read_bytes())['weight_map'].values())
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
    raise UserError(f'{path}: not an index of safetensors files; download it again.') from None
  if not names:
    raise UserError(f'{path}: the index names no file; download it again.')
  for name in names:
    plain = isinstance(name, str) and name.isprintable() and Path(name).name == name
    if not plain or not name.endswith('.safetensors'):
      raise UserError(
        f'{path}: {name!r:.80} is no name of a safetensors file in this folder; download the '
        'index again.'
      )
  return sorted(set(names))


def print_unread(folder: Path, found: Mapping[str, Stored]) -> None:
  """Prints which weights of a folder are not read, perhaps those of an older save."""
  read = {stored.file for stored in found.values()}
  unread = sorted(path.name for path in set(folder.glob('model*.safetensors')) - read)
  if unread:
    names = ', '.join(sorted(path.name for path in read))
    print(f'{folder}: as in transformers, {names} is read, and not {", ".join(unread)}.')


def shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
  """name -> shape of every tensor in the safetensors files of a folder.

  Raises:
    UserError: if a file cannot be read.
  """
  return {name: stored.shape for name, stored in find_tensors(folder).items()}


def find_tensors(folder: Path) -> dict[str, Stored]:
  """name -> every tensor that is a weight.

  Raises:
    UserError: if a file cannot be read, or two hold the same tensor.
  """
  found: dict[str, Stored] = {}
  for path in _files(folder):
    with open_tensors(path) as file:
      for name in file.keys():  # noqa: SIM118 - not a dict
        if _BUFFERS.search(name):
          continue
        if name in found:
          raise UserError(
            f"{folder}: both {found[name].file.name} and {path.name} hold the tensor '{name}'; "
            'remove the files of the older save.'
          )
        tensor = file.get_slice(name)
        found[name] = Stored(path, tuple(tensor.get_shape()), tensor.get_dtype())
  return found


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
  if path.name == gguf_files.NAME:
    yield gguf_files.read_tensors(path)
    return
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      yield file
  except FileNotFoundError:
    raise UserError(f'{path}: the index names this file, but it is missing; download it.') from None
  except OSError as error:
    raise UserError(f'{path} cannot be read: {first_line(error)}; give a readable file.') from None
  except safetensors.SafetensorError as error:
    raise UserError(f'{path}: broken or cut short ({error}); download it again.') from None
