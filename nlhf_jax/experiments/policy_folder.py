"""The parameters of a policy as a folder in the Hugging Face layout."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from transformers import LlamaConfig

from nlhf_jax import distributed
from nlhf_jax.errors import UserError
from nlhf_jax.experiments import export_files
from nlhf_jax.experiments.model_config import DTYPES
from nlhf_jax.experiments.specs import LanguageExperiment
from nlhf_jax.models import lora, weights
from nlhf_jax.models.architectures import Architecture
from nlhf_jax.structs import Params


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
