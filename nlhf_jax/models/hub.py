"""Pretrained models in the Hugging Face layout: where they are, and what they are."""

from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoConfig

from nlhf_jax.errors import UserError

# Weights are read from safetensors only: nothing is unpickled, and no code of a model is run.
WANTED = ('*.json', '*.jinja', '*.safetensors', '*.txt', 'tokenizer.model')


def locate(name: str) -> Path:
  """The folder of a model: `name` itself, or its copy in the local cache, downloaded if need be.

  Raises:
    UserError: if it is neither a folder nor a name that can be reached.
  """
  folder = Path(name)
  if folder.is_dir():
    return folder
  download = f"download it first with 'hf download {name} --local-dir DIR', then give DIR"
  try:
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=WANTED))
  except HFValidationError:
    raise UserError(f"'{name}' is neither a folder nor the name of a model on the hub.") from None
  except (LocalEntryNotFoundError, OSError) as error:  # no network
    raise UserError(f"'{name}' is no folder and the hub cannot be reached; {download}.") from error
  except HfHubHTTPError as error:
    raise UserError(f"'{name}' is no folder, and the hub says: {error}; {download}.") from error


def read_config(folder: Path) -> Any:
  """The `transformers` config of a model, whichever of its releases wrote it.

  Raises:
    UserError: if there is none, or it cannot be read.
  """
  if not (folder / 'config.json').is_file():
    raise UserError(f"{folder}: there is no config.json; give a model's folder.")
  try:
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
  except (ValueError, OSError, KeyError) as error:
    raise UserError(f'{folder}/config.json cannot be used: {error}') from None
