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
from nlhf_jax.experiments.language.config import check, make_experiment, slots_of
from nlhf_jax.experiments.language.run import fine_tune, train_policy
from nlhf_jax.experiments.model_config import DTYPES, make_mesh
from nlhf_jax.experiments.specs import LanguageExperiment
from nlhf_jax.models import lora, weights
from nlhf_jax.models.architectures import Architecture
from nlhf_jax.storage import hub, json_lines
from nlhf_jax.structs import Params
from nlhf_jax.training import interrupts


def start(config: ConfigDict, name: str, stages: Path, player: str, to: Path, merged: bool) -> None:
  """Writes a player of the experiment to a folder.

  Args:
    config: of the experiment.
    name: of the experiment.
    stages: where its stages are kept.
    player: as it is called in the tournament.
    to: the folder; there must be nothing in it.
    merged: whether an adapter becomes part of the weights, instead of being written apart.

  Raises:
    UserError: if the player is unknown or has not been trained to its end, or the folder is taken.
  """
  if to.exists() and any(to.iterdir()):
    raise UserError(f"--to='{to}' is not empty; give a new folder.")
  check(config)
  with interrupts.deferred(), make_mesh(config):
    experiment = make_experiment(config, name, stages)
    write(experiment, of_player(experiment, player), to, merged)


def slot_of(experiment: LanguageExperiment, player: str) -> tuple[str, str]:
  """The stage of a player, and its slot there.

  Raises:
    UserError: if there is no such player.
  """
  slots = slots_of(experiment)
  if player not in slots:
    raise UserError(f"player '{player}' must be one of {', '.join(slots)}.")
  return slots[player]


def of_player(experiment: LanguageExperiment, player: str) -> Params:
  """The parameters of a player whose training is done.

  Raises:
    UserError: if there is no such player, or its training is not done.
  """
  policy, slot = slot_of(experiment, player)
  for stage in dict.fromkeys(('sft', policy)):
    note = experiment.stages[stage].folder / 'stage.json'
    if not (note.exists() and json_lines.read_json(note)['done']):
      raise UserError(
        f"player '{player}': its stage '{stage}' is not done; run nlhf_jax.main with the same "
        'config, and the same --workdir or --stages, first.'
      )
  reference = fine_tune(experiment)
  if policy == 'sft':
    return reference
  return train_policy(experiment, policy, reference, None, lambda slots: {})[slot]


def write(experiment: LanguageExperiment, params: Params, to: Path, merged: bool) -> None:
  """Weights, config and tokenizer; of a pretrained model, what lies beside its weights as it is."""
  model, tokenizer = experiment.model, experiment.corpus.tokenizer
  if model.lora and not merged:
    if model.source is None:
      raise UserError('an adapter of a new model is of use to no one; pass --merged=True.')
    base = model.source.name
    weights.save_adapter(to, model.source.family, params, model.lora, base)
    print(f'\nAdapter of {base}: {to}')
    return
  if model.lora:
    params = lora.merge(params, model.lora.scale)
  if model.source is None:
    params, config = as_llama(params, model.sizes, tokenizer)
    weights.save(to, 'llama', params, np.float32)
    if distributed.is_first():
      config.save_pretrained(to)
      tokenizer.save_pretrained(to)
  else:
    dtype = dtype_of(model.source.folder)
    weights.save(to, model.source.family, params, DTYPES[dtype])
    texts = [path for pattern in hub.TEXTS for path in model.source.folder.glob(pattern)]
    for path in texts if distributed.is_first() else ():
      if not path.name.endswith('.index.json'):
        shutil.copyfile(path, to / path.name)
  print(f'\nModel: {to}')


def dtype_of(folder: Path) -> str:
  """In what a pretrained model is written, by its config."""
  config = json.loads((folder / 'config.json').read_text())
  dtype = config.get('dtype') or config.get('torch_dtype')
  return dtype if dtype in DTYPES else 'float32'


def as_llama(params: Params, sizes: Architecture, tokenizer: Any) -> tuple[Params, LlamaConfig]:
  """A model of `architectures.small` as a Llama, whose embeddings are not scaled, nor tied then."""
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
