"""Training on texts, one step at a time: sample responses, have them judged, update the policy."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array

from nlhf_jax import trees
from nlhf_jax.algorithms.algorithm import (
  Algorithm,
  check_conversations,
  needs_judge,
  training_data,
)
from nlhf_jax.data import tokenizers
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.generation import encode_conversations, padded_length
from nlhf_jax.judges.function import FunctionJudge
from nlhf_jax.judges.judge import Judge, judge_from_texts, probability, with_feedback
from nlhf_jax.language_model import LanguageModel, Prompt
from nlhf_jax.models import lora, scoring, sharding
from nlhf_jax.sampling.dialogue_rollout import Dialogue, make_dialogue_rollout
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.sampling.users import with_texts
from nlhf_jax.structs import Comparison, Prompts, Responses, TrainState
from nlhf_jax.training import divergence, step_metrics
from nlhf_jax.training.rollout_step import make_rollout_step
from nlhf_jax.training.update import initial_state, make_update

MIN_WIDTH = 32  # tokens; prompts are padded to it, or to the next power of two

Batch = Sequence[Any]  # of prompts or of tuples, as `TrainStep` has it


class TrainStep(NamedTuple):
  """A training step: `init(key)` returns the first state, a call trains on a batch of texts.

  `train(state, batch, key)` returns the next state and metrics, which are scalars by name. A batch
  consists of what the algorithm learns from: prompts; or pairs (prompt, response) of
  demonstrations; or triples (prompt, chosen, rejected) of comparisons; or, for `kto`, either these
  or triples (prompt, response, whether it is good). The arrays of the state
  passed in are donated. Batches of other sizes, and prompts of other lengths, are compiled anew.
  If a loss, gradient, parameter or metric is not finite, its step leaves the state as it is, and
  the next call raises `UserError`.
  """

  init: Callable[[Array], TrainState]
  step: Callable[[TrainState, Batch, Array], tuple[TrainState, dict[str, Array]]]

  def __call__(
    self, state: TrainState, batch: Batch, key: Array
  ) -> tuple[TrainState, dict[str, Array]]:
    """The next state, and metrics of this step."""
    return self.step(state, batch, key)


def make_train_step(
  model: LanguageModel,
  algorithm: Algorithm,
  judge: FunctionJudge | Judge | None,
  optimizer: optax.GradientTransformation,
  *,
  response_length: int = 128,
  accumulate: int = 1,
  dialogue: Dialogue | None = None,
) -> TrainStep:
  """A training step of the algorithm, which starts from the parameters of the model.

  Args:
    model: the policy at the start; the reference of algorithms that have one.
    algorithm: one of `nlhf_jax.algorithms`.
    judge: of `nlhf_jax.judges`, or a function from a `Comparison` to its payoff [B, K, J]; None for
      algorithms that learn from comparisons or demonstrations.
    optimizer: minimises the loss. `init` makes its state.
    response_length: most tokens in a response, or in a turn of a conversation.
    accumulate: number of equal parts, of which gradients are computed one after the other.
    dialogue: a user, with whom the policy converses; a judge of texts compares whole conversations.

  Raises:
    UserError: if the algorithm needs a judge and has none, or does not go with the arguments.
  """
  if needs_judge(algorithm) and judge is None:
    raise UserError('judge=None: this algorithm compares sampled responses and needs a judge.')
  if accumulate > 1 and not algorithm.per_example:
    raise UserError(
      f'accumulate={accumulate}: the loss of this algorithm compares every response with its whole '
      'batch; set accumulate=1.'
    )
  if isinstance(judge, FunctionJudge):
    if algorithm.payoffs == ('reward',):
      raise UserError('this algorithm learns from rewards, and the judge gives probabilities.')
    judge = judge_from_texts(judge, model.tokenizer)
  settings = dict(length=response_length, stop=model.tokenizer.eos_token_id)
  if dialogue:
    check_conversations(algorithm)
    dialogue = with_texts(dialogue, model.tokenizer)
    rollout = partial(make_dialogue_rollout, model.decoder, dialogue=dialogue, **settings)
    encode = partial(encode_openings, dialogue)
  else:
    rollout = partial(make_rollout, model.decoder, **settings)
    encode = ENCODERS[training_data(algorithm)]
  play = make_rollout_step(algorithm, rollout, judge and with_feedback(judge, probability))
  score, measure = scoring.make_score(model.decoder), step_metrics.make_rollout_metrics(algorithm)
  update = make_update(algorithm, score, optimizer, measure, accumulate)

  def init(key):
    own, base = model.add_adapters(key), None
    if model.lora:
      own, base = trees.split(own, lora.is_adapter)
    state = initial_state(algorithm, own, optimizer, base)
    # Slots that do not move lie on the mesh already.
    return sharding.put_parameters(state._replace(fixed={}))._replace(fixed=state.fixed)

  def step(state, batch, key):
    tokens = sharding.put_rows(encode(model, batch, response_length))
    # The rollout takes the key folded with 0, the judge with 1.
    comparison = play(state.slots, tokens, key)
    if int(state.nonfinite):  # of the update before, which may run until here
      raise UserError(divergence.describe_state(state))
    return update(state, comparison, jax.random.fold_in(key, 2))

  return TrainStep(init, step)


def encode_prompts(
  model: LanguageModel, prompts: Sequence[Prompt], response_length: int, reserved: str = ''
) -> Prompts:
  """Prompts [B, P] as tokens, with room for a response after each; messages call it `reserved`."""
  rows = encode_conversations(model.tokenizer, prompts)
  longest = max(map(len, rows))
  if model.max_positions and longest + response_length > model.max_positions:
    reserved = reserved or f'response_length={response_length}'
    raise UserError(
      f'a prompt of {longest} tokens and {reserved} are more than the '
      f'{model.max_positions} positions of the model; shorten one of them.'
    )
  room = (model.max_positions or sys.maxsize) - response_length
  return tokenizers.pad_prompts(model.tokenizer, rows, padded_length(longest, MIN_WIDTH, room))


def encode_openings(
  dialogue: Dialogue, model: LanguageModel, prompts: Sequence[Prompt], turn_length: int
) -> Prompts:
  """Prompts [B, P] as tokens, with room for a conversation after each."""
  length = dialogue.row_length(turn_length)
  return encode_prompts(model, prompts, length, f'a conversation of up to {length} tokens')


def encode_responses(tokenizer: Any, texts: Sequence[str], length: int) -> Responses:
  """One response to each prompt, [B, 1, length]."""
  rows = tokenizers.response_ids(tokenizer, texts)
  longest = max(map(len, rows))
  if longest > length:
    raise UserError(
      f'a response has {longest} tokens; raise response_length={length}, or cut the response.'
    )
  return tokenizers.pad_responses(tokenizer, rows, length)


def encode_demonstrations(model: LanguageModel, pairs: Batch, response_length: int) -> Comparison:
  """(prompt, response) of each example."""
  prompts, responses = _columns(pairs, 'prompt', 'response')
  left = encode_responses(model.tokenizer, responses, response_length)
  return Comparison(encode_prompts(model, prompts, response_length), left)


def encode_comparisons(model: LanguageModel, triples: Batch, response_length: int) -> Comparison:
  """(prompt, chosen, rejected) of each example; the payoff of the chosen one is 1/2."""
  prompts, *sides = _columns(triples, 'prompt', 'chosen', 'rejected')
  left, right = (encode_responses(model.tokenizer, side, response_length) for side in sides)
  payoff = np.full((len(triples), 1, 1), 0.5, np.float32)
  return Comparison(encode_prompts(model, prompts, response_length), left, right, payoff)


def encode_unpaired(model: LanguageModel, triples: Batch, response_length: int) -> Comparison:
  """(prompt, response, True or False) of each example; or (prompt, chosen, rejected)."""
  prompts, responses, labels = _columns(triples, 'prompt', 'response', 'True or False')
  if not all(isinstance(label, bool) for label in labels):
    return encode_comparisons(model, triples, response_length)
  left = encode_responses(model.tokenizer, responses, response_length)
  payoff = np.array(labels, np.float32)[:, None, None] - 0.5
  return Comparison(encode_prompts(model, prompts, response_length), left, None, payoff)


def _columns(batch: Batch, *names: str) -> list[tuple]:
  """The examples of a batch, field by field."""
  if any(isinstance(example, str) or len(example) != len(names) for example in batch):
    raise UserError(f'this algorithm learns from examples ({", ".join(names)}); give such tuples.')
  return list(zip(*batch, strict=True))


# What an algorithm learns from -> how a batch of it becomes tokens.
ENCODERS = {
  'prompts': encode_prompts,
  'demonstrations': encode_demonstrations,
  'comparisons': encode_comparisons,
  'unpaired': encode_unpaired,
}
