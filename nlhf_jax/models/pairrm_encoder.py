"""PairRM, a ranker of pairs (arXiv 2306.02561): DeBERTa reads a prompt and two responses at once.

Its published folders come in two layouts with the same weights: that of LLM-Blender, whose config
is the ranker's, and that of its port to `transformers`, whose config is the encoder's. In the first
the encoder is some DeBERTa-v3, known up to the sizes that its tensors tell.
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
from nlhf_jax.models import deberta, sharding, weights
from nlhf_jax.models.transformer import FLOAT32, Numerics
from nlhf_jax.structs import Params

FAMILY = 'pairrm'
HEAD_SIZE = 64  # of every DeBERTa-v3
# What every DeBERTa-v3 has that does not show in its tensors.
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
  """Most tokens of a prompt and, where it has as many, of each response; special ones count."""

  source: int = 1224
  candidate: int = 412


class Published(NamedTuple):
  """What the config of a folder says."""

  encoder: deberta.Sizes
  tasks: int
  lengths: Lengths


class Ranker(NamedTuple):
  """A ranker as functions.

  `init(key)` gives parameters; `places(params)` what all texts share, to be computed once;
  `logit(params, places, tokens [N, S], mask [N, S], at [N, 3])` that the first response is better,
  [N], `at` being where the prompt's prefix is and those of the first and the second response.
  """

  init: Callable[[Array], Params]
  places: Callable[[Params], tuple]
  logit: Callable[[Params, tuple, Array, Array, Array], Float[Array, 'N']]


class Head(nn.Module):
  """The score of a response for every task, from its hidden state and that of the prompt."""

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
    of_encoder, of_head = jax.random.split(key)
    pair = jnp.zeros((1, 2 * sizes.width))
    return {'encoder': encoder.init(of_encoder), 'head': head.init(of_head, pair)['params']}

  def logit(params, places, tokens, mask, at):
    source, *responses = jnp.unstack(
      encoder.read(params['encoder'], places, tokens, mask, at), axis=1
    )
    first, second = (
      head.apply({'params': params['head']}, jnp.concatenate([source, response], axis=-1))
      for response in responses
    )
    return jnp.mean(first.astype(jnp.float32) - second.astype(jnp.float32), axis=-1)

  return Ranker(init, lambda params: encoder.places(params['encoder']), logit)


def read_published(folder: Path) -> Published:
  """What a published folder holds, in either layout; in that of the port, its config says it all.

  Raises:
    UserError: if it is no PairRM.
  """
  path = folder / 'config.json'
  try:
    said = json.loads(path.read_bytes())
    if 'ranker_type' in said:
      _check_weights(folder)
      return _of_blender(said, weights.shapes_in(folder))
    return _of_port(said)
  except UserError as error:
    raise UserError(f'{folder}: {error}') from None
  except FileNotFoundError:
    raise UserError(f"{folder}: there is no config.json; give PairRM's folder.") from None
  except Exception as error:  # whatever the file leads to
    raise UserError(f'{path} cannot be used: {first_line(error)}.') from None


def _check_weights(folder: Path) -> None:
  if not any(folder.glob('model*.safetensors')):
    raise UserError(
      f'there is no model.safetensors in {folder}. A pickle as pytorch_model.bin may run code and '
      f'is not read. Where there is PyTorch, convert it with `{CONVERT}`.'
    )


def _of_port(said: Mapping[str, Any]) -> Published:
  """Of `llm-blender/PairRM-hf`."""
  if said.get('model_type') != 'deberta-v2' or 'n_tasks' not in said:
    raise UserError(
      'its config.json is neither that of a ranker of LLM-Blender nor that of a DeBERTa with '
      'n_tasks; give llm-blender/PairRM, llm-blender/PairRM-hf or a copy.'
    )
  return Published(
    deberta.sizes_from_config(DebertaV2Config.from_dict(said)), said['n_tasks'], Lengths()
  )


def _of_blender(said: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Published:
  """Of `llm-blender/PairRM`."""
  for field, wanted in (('ranker_type', 'pairranker'), ('model_name', 'microsoft/deberta-v3-')):
    if not str(said.get(field)).startswith(wanted):
      raise UserError(f"config.json: {field}='{said.get(field)}' is not supported, only {wanted}.")
  layers = [name for name in shapes if name.endswith('.intermediate.dense.weight')]
  embedding = 'pretrained_model.embeddings.word_embeddings.weight'
  if not layers or embedding not in shapes:
    raise UserError("its weights are not PairRM's: they have no layers, or no embedding.")
  vocabulary, width = shapes[embedding]
  config = DebertaV2Config(
    vocab_size=vocabulary,
    hidden_size=width,
    num_hidden_layers=len(layers),
    num_attention_heads=width // HEAD_SIZE,
    intermediate_size=shapes[layers[0]][0],
    **V3,
  )
  lengths = Lengths(said['source_maxlength'], said['candidate_maxlength'])
  return Published(deberta.sizes_from_config(config), said['n_tasks'], lengths)


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
