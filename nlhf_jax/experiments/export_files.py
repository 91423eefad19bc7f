"""The files beside exported weights: with them, other programs stop where training stopped.

A policy ends its responses with the stop token of its tokenizer here. That is the token with which
the chat template ends an answer, and it may differ from the one that the published files name.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, LlamaConfig

from nlhf_jax.errors import UserError
from nlhf_jax.models.safetensors_files import INDEX
from nlhf_jax.storage import hub

TOKENIZER = (
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'chat_template.jinja',
)
GENERATION = 'generation_config.json'


def write_new(tokenizer: Any, config: LlamaConfig, to: Path) -> None:
  """Writes the files of a model that was made here."""
  config.save_pretrained(to)
  tokenizer.save_pretrained(to)
  stops = {'eos_token_id': tokenizer.eos_token_id, 'pad_token_id': tokenizer.pad_token_id}
  GenerationConfig(**stops).save_pretrained(to)


def write_whole(tokenizer: Any, source: Path, to: Path) -> None:
  """Copies the texts of a pretrained model, with the stop token of training."""
  for path in sorted(path for pattern in hub.TEXTS for path in source.glob(pattern)):
    if path.name not in (INDEX, 'adapter_config.json'):
      shutil.copyfile(path, to / path.name)
  _change(to / 'config.json', {'eos_token_id': tokenizer.eos_token_id})
  _write_stop(tokenizer, source, to)


def write_for_adapter(tokenizer: Any, source: Path, to: Path) -> None:
  """Copies what an adapter needs beside itself to be used as it was trained."""
  for name in (*TOKENIZER, GENERATION):
    if (source / name).exists():
      shutil.copyfile(source / name, to / name)
  settings = to / 'tokenizer_config.json'
  if 'tokenizer_class' not in _read(settings):  # which the model's config would tell
    _change(settings, {'tokenizer_class': 'PreTrainedTokenizerFast'})
  _write_stop(tokenizer, source, to)


def _write_stop(tokenizer, source: Path, to: Path) -> None:
  """Makes the stop token of training that of generation, tokenizer and template."""
  generation = {'eos_token_id': tokenizer.eos_token_id}
  if 'pad_token_id' not in _read(to / GENERATION):
    generation['pad_token_id'] = tokenizer.pad_token_id
  if _read(to / GENERATION).get('eos_token_id') != tokenizer.eos_token_id:
    _change(to / GENERATION, generation)
  published = AutoTokenizer.from_pretrained(
    str(source), local_files_only=True, trust_remote_code=False
  )
  if published.eos_token == tokenizer.eos_token:
    return
  _change(to / 'tokenizer_config.json', {'eos_token': tokenizer.eos_token})
  if (to / 'special_tokens_map.json').exists():
    _change(to / 'special_tokens_map.json', {'eos_token': tokenizer.eos_token})
  template = published.chat_template
  template = template['default'] if isinstance(template, dict) else template
  if template is None or 'eos_token' not in template:
    return
  # The template still writes its own end-of-sequence token.
  template = f'{{% set eos_token = {json.dumps(published.eos_token)} %}}{template}'
  if (to / 'chat_template.jinja').exists():
    (to / 'chat_template.jinja').write_text(template)
  else:
    _change(to / 'tokenizer_config.json', {'chat_template': template})


def _read(path: Path) -> dict[str, Any]:
  """The settings in a file; none, if it does not exist.

  Raises:
    UserError: if the file holds no settings.
  """
  try:
    settings = json.loads(path.read_bytes()) if path.exists() else {}
  except (ValueError, RecursionError):
    settings = None
  if not isinstance(settings, dict):
    raise UserError(f'{path.name} of the pretrained model is no JSON object; download it again.')
  return settings


def _change(path: Path, settings: Mapping[str, Any]) -> None:
  """Changes settings in a file, which stays as it is if it has them."""
  before = _read(path)
  if before | settings != before:
    path.write_text(json.dumps(before | settings, indent=2) + '\n')
