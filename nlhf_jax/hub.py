"""Pretrained models by name: a folder in the Hugging Face layout, or a model on the hub."""

from pathlib import Path

import huggingface_hub

from nlhf_jax.errors import UserError

# Weights are read from safetensors only: nothing is unpickled, and no code of a model is run.
WANTED = ('*.json', '*.jinja', '*.safetensors', '*.txt')


def locate(name: str) -> Path:
  """The folder of a model: `name` itself, or its copy in the local cache, downloaded if need be.

  Raises:
    UserError: if it is no folder, and no model that the hub gives.
  """
  if Path(name).is_dir():
    return Path(name)
  try:
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(WANTED)))
  except (OSError, ValueError) as error:  # not there, not reachable, or no name at all
    raise UserError(
      f"config.model.hf='{name}' is no folder, and the Hugging Face hub did not give it "
      f'({first_line(error)}); download it where there is a network, as '
      f'`hf download {name} --local-dir DIR`, and give DIR.'
    ) from None


def first_line(error: Exception) -> str:
  """What an error says first, to go into a sentence."""
  return next(iter(str(error).splitlines()), type(error).__name__).rstrip('.')
