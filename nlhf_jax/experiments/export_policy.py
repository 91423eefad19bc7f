"""Trained policies as folders in the Hugging Face layout, for `transformers` and `peft`."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from transformers import LlamaConfig

from nlhf_jax import distributed
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.language.config import check, make_experiment
from nlhf_jax.experiments.language.finished_run import load_entry
from nlhf_jax.experiments.model_config import DTYPES, make_mesh
from nlhf_jax.experiments.specs import LanguageExperiment
from nlhf_jax.models import lora, weights
from nlhf_jax.models.architectures import Architecture
from nlhf_jax.storage import hub
from nlhf_jax.structs import Params
from nlhf_jax.training import interrupts


def start(config: ConfigDict, name: str, stages: Path, policy: str, to: Path, merged: bool) -> None:
  """Writes a policy of a finished run to a folder.

  Args:
    config: of the experiment.
    name: of the experiment.
    stages: the folder of its stages.
    policy: its name in the tournament.
    to: the folder, which must be new or empty.
    merged: whether to merge an adapter into the weights, instead of writing it on its own.

  Raises:
    UserError: if the policy is unknown or not trained, or the folder is not empty.
  """
  if to.exists() and any(to.iterdir()):
    raise UserError(f"--to='{to}' is not empty; give a new folder.")
  check(config)
  with interrupts.deferred(), make_mesh(config):
    experiment = make_experiment(config, name, stages)
    write_policy(experiment, load_entry(experiment, policy), to, merged)


def write_policy(experiment: LanguageExperiment, params: Params, to: Path, merged: bool) -> None:
  """Writes weights, config and tokenizer; those of a pretrained model's files are copied."""
  model, tokenizer = experiment.model, experiment.corpus.tokenizer
  if model.lora and not merged:
    if model.source is None:
      raise UserError('the adapter of a new model needs that model too; pass --merged=True.')
    base = model.source.name
    weights.save_adapter(to, model.source.family, params, model.lora, base)
    print(f'\nAdapter of {base}: {to}')
    return
  if model.lora:
    params = lora.merge(params, model.lora.scale)
  if model.source is None:
    params, config = convert_to_llama(params, model.sizes, tokenizer)
    weights.save(to, 'llama', params, np.float32)
    if distributed.is_first():
      config.save_pretrained(to)
      tokenizer.save_pretrained(to)
  else:
    dtype = read_dtype(model.source.folder)
    weights.save(to, model.source.family, params, DTYPES[dtype])
    texts = [path for pattern in hub.TEXTS for path in model.source.folder.glob(pattern)]
    for path in texts if distributed.is_first() else ():
      if not path.name.endswith('.index.json'):
        shutil.copyfile(path, to / path.name)
  print(f'\nModel: {to}')


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
