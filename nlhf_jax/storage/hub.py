"""Finds pretrained models: a folder in the Hugging Face layout, or a GGUF file; local or remote."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import numpy as np

from nlhf_jax import distributed
from nlhf_jax.errors import UserError, first_line
from nlhf_jax.storage import gguf_files, json_lines, model_files, store_inputs

# Weights are read from safetensors only. Nothing is unpickled, and no code of a model is run.
TEXTS = ('*.json', '*.jinja', '*.txt')
WANTED = (*TEXTS, 'model*.safetensors', gguf_files.NAME)


def locate(name: str, files: Sequence[str] = WANTED, field: str = 'config.model.hf') -> Path:
  """The folder of a model: `name` itself, or its copy in the local cache, downloaded if need be.

  Args:
    name: a folder, a file that ends with `.gguf`, either of them as `gs://...` or `s3://...`, or
      `OWNER/MODEL`.
    files: patterns of the files to download.
    field: the field of the config that has the name, for messages.

  Raises:
    UserError: if there is no such folder or file, and the hub has no such model; or the file cannot
      be used.
  """
  if store_inputs.is_url(name):
    name = str(store_inputs.download(name, WANTED, files, field))
  if Path(name).is_dir():
    return Path(name)
  if name.endswith('.gguf'):
    if not Path(name).is_file():
      raise UserError(f"{field}='{name}': there is no such file.")
    return gguf_files.unpack(Path(name))
  try:
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(files)))
  except (OSError, ValueError) as error:  # no such model, no network, or an invalid name
    raise UserError(
      f"{field}='{name}' is no folder, and the Hugging Face hub did not provide it "
      f'({first_line(error)}); download it where there is a network, as '
      f'`hf download {name} --local-dir DIR`, and give DIR.'
    ) from None


def fingerprint(name: str, field: str = 'config.model.hf') -> str:
  """A digest of a pretrained model: of the contents of all files that are read from it.

  Of several processes the first one reads them, if their digests are not known already.

  Raises:
    UserError: if there is no such model, or processes have files of other names or sizes.
  """
  folder = locate(name, field=field)
  # An index may name files that a download would not find.
  paths = sorted({path for pattern in (*TEXTS, '*.safetensors') for path in folder.glob(pattern)})
  sizes = json_lines.json_digest([[path.name, path.stat().st_size] for path in paths])
  distributed.require_same(
    sizes, f"other files of {field}='{name}' than", 'the same model in the same version'
  )

  def combined():
    digest = hashlib.sha256()
    for path in paths:
      digest.update(model_files.sha256(path))
    return np.frombuffer(digest.digest(), np.uint8)

  return np.uint8(distributed.compute_on_first(combined, (32,))).tobytes().hex()
