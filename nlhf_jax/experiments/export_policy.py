"""Trained policies as folders in the Hugging Face layout, for `transformers` and `peft`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from transformers import LlamaConfig

from nlhf_jax import distributed
from nlhf_jax.errors import UserError
from nlhf_jax.experiments import export_files
from nlhf_jax.experiments.export_push import check_name, push
from nlhf_jax.experiments.language.config import check, make_experiment
from nlhf_jax.experiments.language.finished_run import load_entry
from nlhf_jax.experiments.model_card import FOLDER, make_card
from nlhf_jax.experiments.model_config import DTYPES, make_mesh
from nlhf_jax.experiments.specs import LanguageExperiment
from nlhf_jax.models import lora, weights
from nlhf_jax.models.architectures import Architecture
from nlhf_jax.storage import json_lines
from nlhf_jax.storage.draft_folders import draft_folder
from nlhf_jax.structs import Params
from nlhf_jax.training import interrupts


class Export(NamedTuple):
  """What to write of a run, and where: `results` is None if the run has no tournament.

  With `merged`, an adapter is merged into the weights, instead of being written on its own. With
  `push`, the folder is also uploaded to the hub if that is `confirmed`, and its files are printed.
  """

  policy: str  # its name in the tournament
  to: Path
  merged: bool
  results: Mapping[str, Any] | None
  push: str = ''
  confirmed: bool = False


def start(config: ConfigDict, name: str, stages: Path, export: Export) -> None:
  """Writes a policy of a finished run to a folder, which is new or empty.

  Args:
    config: of the experiment.
    name: of the experiment.
    stages: the folder of its stages.
    export: the policy and the folder.

  Raises:
    UserError: if the policy is unknown or not trained, or the folder cannot be written.
  """
  if export.push:
    check_name(export.push)
  check(config)
  with draft_folder(export.to) as draft, interrupts.deferred(), make_mesh(config):
    experiment = make_experiment(config, name, stages)
    write_policy(experiment, load_entry(experiment, export.policy), draft, export.merged)
    adapter = bool(experiment.model.lora) and not export.merged
    if distributed.is_first():
      card = make_card(config, experiment, export.policy, adapter, export.results)
      if export.push:
        card = card.replace(FOLDER, f"folder = '{export.push}'")
      (draft / 'README.md').write_text(card)
  what = f'Adapter of {experiment.model.source.name}' if adapter else 'Model'
  print(f'\n{what}: {export.to}')
  if export.push and distributed.is_first():
    push(export.to, export.push, export.confirmed)


def read_results(config: ConfigDict, workdir: Path, policy: str) -> dict | None:
  """The results of the tournament of this config in a work directory, if it has the policy."""
  try:
    if json_lines.read_json(workdir / 'config.json') != json.loads(config.to_json()):
      return None
    results = json_lines.read_json(workdir / 'results.json')
  except (OSError, ValueError):
    return None
  return results if policy in results.get('policies', ()) else None


def write_policy(experiment: LanguageExperiment, params: Params, to: Path, merged: bool) -> None:
  """Writes weights, config and tokenizer; of a pretrained model's files only the end changes."""
  model, tokenizer = experiment.model, experiment.corpus.tokenizer
  if model.lora and not merged:
    if model.source is None:
      raise UserError('the adapter of a new model needs that model too; pass --merged=True.')
    weights.save_adapter(to, model.source.family, params, model.lora, model.source.name)
    if distributed.is_first():
      export_files.write_for_adapter(tokenizer, model.source.folder, to)
    return
  if model.lora:
    params = lora.merge(params, model.lora.scale)
  if model.source is None:
    params, config = convert_to_llama(params, model.sizes, tokenizer)
    weights.save(to, 'llama', params, np.float32)
    if distributed.is_first():
      export_files.write_new(tokenizer, config, to)
  else:
    dtype = read_dtype(model.source.folder)
    weights.save(to, model.source.family, params, DTYPES[dtype])
    if distributed.is_first():
      export_files.write_whole(tokenizer, model.source.folder, to)


def read_dtype(folder: Path) -> str:
  """The type in which a pretrained model is saved, by its config; float32 if that names none."""
  config = json.loads((folder / 'config.json').read_text())
  dtype = config.get('dtype') or config.get('torch_dtype')
  return dtype if dtype in DTYPES else 'float32'


def convert_to_llama(
  params: Params, sizes: Architecture, tokenizer: Any
) -> tuple[Params, LlamaConfig]:
  """Converts a model of `architectures.small` to a Llama with unscaled, untied embeddings."""
  table = params['embed']['embedding']
  changed = {
    'embed': {'embedding': table * sizes.embedding_scale},
    'head': {'kernel': jnp.transpose(table)},
  }
  config = LlamaConfig(
    architectures=['LlamaForCausalLM'],
    vocab_size=sizes.vocabulary,
    hidden_size=sizes.width,
    intermediate_size=sizes.hidden,
    num_hidden_layers=len(sizes.layers),
    num_attention_heads=sizes.heads,
    num_key_value_heads=sizes.key_heads,
    head_dim=sizes.head_size,
    rms_norm_eps=sizes.norm_epsilon,
    rope_parameters={'rope_type': 'default', 'rope_theta': sizes.layers[0].rotary.base},
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=tokenizer.eos_token_id,
    pad_token_id=tokenizer.pad_token_id,
    dtype='float32',
  )
  return params | changed, config
