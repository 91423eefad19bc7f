"""Language models for use as a library: loaded from a folder or a run, and sampled from."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from nlhf_jax import distributed, trees
from nlhf_jax.data import dialogue_texts, tokenizers
from nlhf_jax.data.dialogue_texts import Conversation
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.generation import (
  LoadedModel,
  encode_conversations,
  filters_at,
  make_respond,
)
from nlhf_jax.evaluation.model_user import make_model_user
from nlhf_jax.experiments.language.finished_run import load_entry
from nlhf_jax.experiments.language.run_folder import open_run
from nlhf_jax.experiments.model_config import DTYPES
from nlhf_jax.models import architectures, lora, sharding, weights
from nlhf_jax.models.blocks import REMAT, Numerics
from nlhf_jax.models.decoder import Decoder, parameter_shapes
from nlhf_jax.models.lora import Lora
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.sampling.dialogue_rollout import Dialogue, make_dialogue_rollout
from nlhf_jax.sampling.users import FunctionUser, with_texts
from nlhf_jax.storage import hub
from nlhf_jax.structs import Params

# A question, or the messages {'role', 'content'} of a conversation that ends with the user's.
Prompt = str | Sequence[Mapping[str, str]]


class LanguageModel(NamedTuple):
  """A decoder with parameters and a tokenizer.

  `tokenizer` is one that `nlhf_jax.data.tokenizers.train` or `load` returns. A prompt and its
  response have at most `max_positions` tokens; None means no limit. With `lora`, training changes
  adapters alone; `params` need not have any yet.
  """

  decoder: Decoder
  params: Params
  tokenizer: Any
  max_positions: int | None = None
  lora: Lora | None = None

  def add_adapters(self, key: Array) -> Params:
    """The parameters, with new adapters drawn by `key` if the model is to have some but has none.

    A new adapter adds nothing yet: its second factor is zero.
    """
    if self.lora is None or any(map(lora.is_adapter, trees.flatten(self.params))):
      return self.params
    new = lora.initialise(parameter_shapes(self.decoder), key)
    return trees.merge(self.params, new)


def from_pretrained(
  name: str | Path,
  lora_rank: int = 0,
  lora_alpha: float = 16.0,
  dtype: str = 'float32',
  remat: str = 'nothing',
) -> LanguageModel:
  """A pretrained model with its weights and its tokenizer.

  Args:
    name: a folder in the Hugging Face layout (config.json, *.safetensors, tokenizer files), or the
      name OWNER/MODEL on the hub. The families are those of `nlhf_jax.models.architectures`.
    lora_rank: the rank of adapters on every linear layer, which are then all that is trained; 0 to
      train all weights.
    lora_alpha: adapters are scaled by lora_alpha / lora_rank.
    dtype: float32 or bfloat16, of the weights and of what is computed with them.
    remat: what the backward pass computes again, to save memory: nothing, dots (all but products
      of matrices) or layers (all but their inputs).

  Raises:
    UserError: if an argument or the model cannot be used.
  """
  if dtype not in DTYPES:
    raise UserError(f"dtype='{dtype}' must be one of {', '.join(DTYPES)}.")
  if remat not in ('nothing', *REMAT):
    raise UserError(f"remat='{remat}' must be one of nothing, {', '.join(REMAT)}.")
  if lora_rank < 0 or lora_alpha <= 0:
    raise UserError(
      f'lora_rank={lora_rank} must be at least 0, and lora_alpha={lora_alpha} above 0.'
    )
  folder = hub.locate(str(name), field='name')
  family, sizes = architectures.read_architecture(folder)
  tokenizer = tokenizers.load(str(folder), field='name')
  if len(tokenizer) > sizes.vocabulary:
    raise UserError(
      f"name='{name}': the tokenizer has {len(tokenizer)} tokens, but the model's embedding only "
      f'{sizes.vocabulary}; they do not belong together.'
    )
  adapters = Lora(lora_rank, lora_alpha, lora.TARGETS) if lora_rank else None
  decoder = make_decoder(sizes, Numerics(DTYPES[dtype], DTYPES[dtype], remat), adapters)
  _, base = trees.split(parameter_shapes(decoder), lora.is_adapter)
  params = weights.load(folder, family, base, sharding.parameter_sharding)
  return LanguageModel(decoder, params, tokenizer, sizes.max_positions, adapters)


def load_run(folder: str | Path, policy: str, stages: str | Path | None = None) -> LanguageModel:
  """A policy of a finished run.

  Args:
    folder: the work directory of the run, such as runs/nash_md.
    policy: its name in the tournament: sft, or one that the config trains.
    stages: where the run kept its stages; by default `stages` in the work directory or, if there is
      none, beside it.

  Raises:
    UserError: if there is no such run or policy, or its training is not finished.
  """
  folder = Path(folder)
  experiment = open_run(folder, folder.parent / 'stages', stages)
  model = experiment.model
  params = load_entry(experiment, policy)
  tokenizer = experiment.corpus.tokenizer
  return LanguageModel(model.decoder, params, tokenizer, model.sizes.max_positions, model.lora)


def converse(
  model: LanguageModel,
  params: Params,
  prompts: Sequence[Prompt],
  dialogue: Dialogue,
  *,
  length: int = 128,
  temperature: float = 1.0,
  seed: int = 0,
) -> list[Conversation]:
  """A conversation after each prompt: messages {'role', 'content'}, the prompt first.

  Args:
    model: the decoder, the tokenizer, and the weights under adapters.
    params: as of `generate`.
    prompts: questions or conversations.
    dialogue: the user, and the number of turns.
    length: most tokens in a turn of the policy.
    temperature: 0 chooses the most likely token.
    seed: of the samples and of the user.

  Raises:
    UserError: if a prompt and its conversation are too long for the model.
  """
  tokenizer = model.tokenizer
  dialogue = with_texts(dialogue, tokenizer)
  rows = encode_conversations(tokenizer, prompts)
  room = (model.max_positions or sys.maxsize) - dialogue.row_length(length)
  if max(map(len, rows)) > room:
    raise UserError(
      f'a prompt of {max(map(len, rows))} tokens and a conversation of up to '
      f'{dialogue.row_length(length)} are more than the {model.max_positions} positions of the '
      'model; shorten one of them.'
    )
  rollout = make_dialogue_rollout(
    model.decoder,
    [{'policy': 1.0}],
    dialogue=dialogue,
    length=length,
    stop=tokenizer.eos_token_id,
    filters=filters_at(temperature),
  )
  padded = tokenizers.pad_prompts(tokenizer, rows, max(map(len, rows)))
  slots = {'policy': trees.merge(model.params, params)}
  (responses,) = rollout(slots, padded, jax.random.key(seed))
  return dialogue_texts.messages(tokenizer, padded, distributed.fetch(responses))


def user_from_model(
  model: LanguageModel,
  instruction: str,
  *,
  params: Params | None = None,
  length: int = 64,
  temperature: float = 1.0,
) -> FunctionUser:
  """A language model as the user: a policy that is frozen, or any other model.

  It reads the instruction, and then the conversation with the roles exchanged, anew in every turn.

  Args:
    model: the decoder, the tokenizer, and the weights under adapters.
    instruction: what it should do, such as answer questions about a task.
    params: as of `generate`; the model's own if None.
    length: most tokens in a reply.
    temperature: of its replies.
  """
  weights = model.params if params is None else trees.merge(model.params, params)
  loaded = LoadedModel(model.decoder, weights, model.tokenizer, model.max_positions or sys.maxsize)
  return make_model_user(loaded, instruction, length=length, temperature=temperature)


def generate(
  model: LanguageModel,
  params: Params,
  prompts: Sequence[Prompt],
  *,
  length: int = 128,
  temperature: float = 1.0,
  seed: int = 0,
  batch: int = 64,
) -> list[str]:
  """A response to each prompt.

  Args:
    model: the decoder, the tokenizer, and the weights under adapters.
    params: those to sample with: `model.params`, or a slot of a `TrainState`, whose adapters are
      added to the model.
    prompts: questions or conversations.
    length: most tokens in a response.
    temperature: 0 chooses the most likely token.
    seed: of the samples.
    batch: prompts that are answered at once.

  Raises:
    UserError: if a prompt and its response are too long for the model.
  """
  weights = trees.merge(model.params, params)
  loaded = LoadedModel(model.decoder, weights, model.tokenizer, model.max_positions or sys.maxsize)
  respond = make_respond(loaded, length=length, batch=batch)
  conversations = [
    [{'role': 'user', 'content': prompt}] if isinstance(prompt, str) else prompt
    for prompt in prompts
  ]
  return respond(conversations, temperature, seed)
