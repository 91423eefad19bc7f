"""PairRM, a ranker of pairs (arXiv 2306.02561): DeBERTa over a prompt and two responses.

Published folders come in two layouts with the same weights: that of LLM-Blender, whose config
describes the ranker, and that of its port to `transformers`, whose config describes the encoder. In
the first, the encoder is a DeBERTa-v3 whose sizes are inferred from its tensors.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from transformers import DebertaV2Config

from nlhf_jax.errors import UserError, first_line
from nlhf_jax.models import deberta, safetensors_files, sharding, weights
from nlhf_jax.models.blocks import FLOAT32, Numerics
from nlhf_jax.structs import Params

FAMILY = 'pairrm'
HEAD_SIZE = 64  # of every DeBERTa-v3
# Settings of every DeBERTa-v3 that cannot be inferred from its tensors.
V3 = dict(
  relative_attention=True,
  position_buckets=256,
  max_position_embeddings=512,
  share_att_key=True,
  pos_att_type='p2c|c2p',
  norm_rel_ebd='layer_norm',
  position_biased_input=False,
  type_vocab_size=0,
  layer_norm_eps=1e-7,
)

CONVERT = (
  'python -c "import torch, safetensors.torch as s; s.save_file(torch.load('
  "'pytorch_model.bin', weights_only=True), 'model.safetensors')\""
)


class Lengths(NamedTuple):
  """Maximum tokens of a prompt, and of each response after one that long, with special tokens."""

  source: int = 1224
  candidate: int = 412


class Published(NamedTuple):
  """The config of a published folder."""

  encoder: deberta.Sizes
  tasks: int
  lengths: Lengths


class Ranker(NamedTuple):
  """A ranker as functions.

  - `init(key)` returns parameters.
  - `project_positions(params)` returns what all texts share, to be computed once.
  - `logit(params, projections, tokens [N, S], mask [N, S], columns [N, 3])` returns the logit that
    the first response is better, [N]; the columns are those of the prefix tokens of the prompt, of
    the first and of the second response.
  """

  init: Callable[[Array], Params]
  project_positions: Callable[[Params], tuple]
  logit: Callable[[Params, tuple, Array, Array, Array], Float[Array, 'N']]


class Head(nn.Module):
  """The score of a response for each task, from its hidden state and the prompt's."""

  width: int
  tasks: int
  numerics: Numerics

  @nn.compact
  def __call__(self, x):
    settings = dict(dtype=self.numerics.compute, param_dtype=self.numerics.weights)
    hidden = nn.tanh(nn.Dense(self.width, name='hidden', **settings)(x))
    return nn.Dense(self.tasks, name='score', **settings)(hidden)


def make_ranker(sizes: deberta.Sizes, tasks: int, numerics: Numerics = FLOAT32) -> Ranker:
  """A `Ranker` with this encoder."""
  encoder = deberta.make_encoder(sizes, numerics)
  head = Head(sizes.width, tasks, numerics)

  def init(key):
    encoder_key, head_key = jax.random.split(key)
    pair = jnp.zeros((1, 2 * sizes.width))
    return {'encoder': encoder.init(encoder_key), 'head': head.init(head_key, pair)['params']}

  def logit(params, projections, tokens, mask, columns):
    source, *responses = jnp.unstack(
      encoder.encode(params['encoder'], projections, tokens, mask, columns), axis=1
    )
    first, second = (
      head.apply({'params': params['head']}, jnp.concatenate([source, response], axis=-1))
      for response in responses
    )
    return jnp.mean(first.astype(jnp.float32) - second.astype(jnp.float32), axis=-1)

  return Ranker(init, lambda params: encoder.project_positions(params['encoder']), logit)


def read_published(folder: Path) -> Published:
  """The config of a published folder, in either layout.

  Raises:
    UserError: if it is not PairRM's.
  """
  path = folder / 'config.json'
  try:
    config = json.loads(path.read_bytes())
    if 'ranker_type' in config:
      _check_weights(folder)
      return _published_by_blender(config, safetensors_files.shapes_in(folder))
    return _published_by_port(config)
  except UserError as error:
    raise UserError(f'{folder}: {error}') from None
  except FileNotFoundError:
    raise UserError(f"{folder}: there is no config.json; give PairRM's folder.") from None
  except Exception as error:  # of any kind that a broken config raises
    raise UserError(f'{path} cannot be used: {first_line(error)}.') from None


def _check_weights(folder: Path) -> None:
  if not any(folder.glob('model*.safetensors')):
    raise UserError(
      f'there is no model.safetensors in {folder}. pytorch_model.bin is a pickle, which may run '
      f'code, and is not read; with PyTorch, convert it with `{CONVERT}`.'
    )


def _published_by_port(config: Mapping[str, Any]) -> Published:
  """The config of `llm-blender/PairRM-hf`."""
  if config.get('model_type') != 'deberta-v2' or 'n_tasks' not in config:
    raise UserError(
      'its config.json is neither that of a ranker of LLM-Blender nor that of a DeBERTa with '
      'n_tasks; give llm-blender/PairRM, llm-blender/PairRM-hf or a copy.'
    )
  sizes = deberta.sizes_from_config(DebertaV2Config.from_dict(config))
  return Published(sizes, config['n_tasks'], Lengths())


def _published_by_blender(
  ranker: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Published:
  """The config of `llm-blender/PairRM`, and the sizes of its tensors."""
  for field, wanted in (('ranker_type', 'pairranker'), ('model_name', 'microsoft/deberta-v3-')):
    if not str(ranker.get(field)).startswith(wanted):
      raise UserError(
        f"config.json: {field}='{ranker.get(field)}' is not supported, only {wanted}."
      )
  layers = [name for name in shapes if name.endswith('.intermediate.dense.weight')]
  embedding = 'pretrained_model.embeddings.word_embeddings.weight'
  if not layers or embedding not in shapes:
    raise UserError("the weights are not PairRM's: they have no layers or no embedding.")
  vocabulary, width = shapes[embedding]
  config = DebertaV2Config(
    vocab_size=vocabulary,
    hidden_size=width,
    num_hidden_layers=len(layers),
    num_attention_heads=width // HEAD_SIZE,
    intermediate_size=shapes[layers[0]][0],
    **V3,
  )
  lengths = Lengths(ranker['source_maxlength'], ranker['candidate_maxlength'])
  return Published(deberta.sizes_from_config(config), ranker['n_tasks'], lengths)


def load_ranker(folder: Path, numerics: Numerics = FLOAT32) -> tuple[Ranker, Params, Lengths]:
  """The ranker of a published folder, its parameters, and the lengths of what it reads.

  Raises:
    UserError: if its config or its weights cannot be used.
  """
  _check_weights(folder)
  sizes, tasks, lengths = read_published(folder)
  ranker = make_ranker(sizes, tasks, numerics)
  shapes = jax.eval_shape(ranker.init, jax.random.key(0))
  return ranker, weights.load(folder, FAMILY, shapes, sharding.parameter_sharding), lengths
