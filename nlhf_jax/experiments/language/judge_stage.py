"""Judges that are trained: what each kind is made of, and its stage."""

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from nlhf_jax.data import tokenizers
from nlhf_jax.data.batches import in_random_order, map_chunks, take
from nlhf_jax.data.readers import Problem
from nlhf_jax.data.schemas import Prompt
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import judge_metrics
from nlhf_jax.experiments.language.tournament_stage import perfect_matrices
from nlhf_jax.experiments.specs import LanguageExperiment
from nlhf_jax.experiments.stages import batches_of, fit
from nlhf_jax.judges.judge import Judge, by_bradley_terry, of_embeddings, of_network, of_rewards
from nlhf_jax.judges.networks import (
  make_embedding_network,
  make_preference_network,
  make_reward_network,
)
from nlhf_jax.structs import Params, Prompts, Responses
from nlhf_jax.tasks.summaries import styles
from nlhf_jax.training import step_metrics
from nlhf_jax.training.update import Measure, Score, make_update

WATCHED = 256  # held-out prompts that learning curves are measured on
INIT = zlib.crc32(b'init')  # folded into the key of a stage, whose steps fold in lower numbers


class Kind(NamedTuple):
  """A network that judges, as functions of its parameters.

  `init(decoder's parameters)` gives them; `score` is what the loss sees. Of parameters, `judge`
  makes what policies learn from, P - 1/2 or a difference of rewards, `preference` P - 1/2 in any
  case, and `shown` P(left > right) with the left response shown first.
  """

  init: Callable[[Params], Params]
  score: Score
  measure: Measure
  judge: Callable[[Params], Judge]
  preference: Callable[[Params], Judge]
  shown: Callable[[Params], Judge]


def make_kind(experiment: LanguageExperiment, name: str) -> Kind:
  """The kind that the stage `name` trains."""
  sizes = (
    experiment.model.decoder,
    experiment.model.sizes.width,
    experiment.corpus.tokenizer.sep_token_id,
    experiment.response_length,
  )
  if name == 'reward_model':
    network = make_reward_network(*sizes)
    judge = partial(of_rewards, network)
    preference = lambda params: by_bradley_terry(judge(params))
    shown = lambda params: lambda comparison: preference(params)(comparison) + 0.5
    return Kind(network.init, network.score, step_metrics.of_rewards, judge, preference, shown)
  if name == 'embedding_model':
    key = jax.random.fold_in(experiment.stages[name].key, INIT)
    network = make_embedding_network(*sizes, planes=experiment.planes, key=key)
    judge = partial(of_embeddings, network)
  else:
    network = make_preference_network(*sizes)
    judge = partial(of_network, network)
  shown = lambda params: lambda comparison: jax.nn.sigmoid(network.logit(params, comparison))
  return Kind(network.init, network.logit, step_metrics.of_preferences, judge, judge, shown)


def train_judge(experiment: LanguageExperiment, name: str, reference: Params) -> Params:
  """The stage `name`, which goes on from the SFT policy's parameters; its network's."""
  training, stage = experiment.judges[name], experiment.stages[name]
  train, held_out = experiment.corpus.train.comparisons, experiment.corpus.held_out.comparisons
  kind = make_kind(experiment, name)

  def evaluate(slots):
    preference = kind.preference(slots['policy'])
    values = against(map_chunks(lambda chunk, _: preference(chunk), held_out), held_out.payoff)
    if experiment.corpus.embedded:
      matrices = perfect_matrices(experiment, preference, take(held_out.prompts, slice(WATCHED)))
      values['weakest_edge_of_cycle'] = styles.weakest_edge(matrices.mean(axis=0).tolist())
    return values

  update = make_update(
    training.algorithm, kind.score, training.optimizer, kind.measure, training.accumulate
  )
  examples = in_random_order(batches_of(train, training, experiment.seed))
  init, trains = kind.init(reference), experiment.model.trains
  return fit(stage, training, init, update, examples, evaluate, trains)['policy']


def encoded(experiment: LanguageExperiment, texts: Sequence[str]) -> Responses:
  """One response a prompt, cut to the experiment's length."""
  tokenizer, length = experiment.corpus.tokenizer, experiment.response_length
  ids = tokenizers.response_ids(tokenizer, texts)
  return tokenizers.pad_responses(tokenizer, [row[:length] for row in ids], length)


def encoded_prompts(experiment: LanguageExperiment, prompts: Sequence[Prompt]) -> Prompts:
  """The prompts, the last tokens of those that are too long.

  Raises:
    UserError: if one is a conversation, and the model has no template for it.
  """
  tokenizer = experiment.corpus.tokenizer
  length = experiment.corpus.held_out.prompts.tokens.shape[1]
  written = [
    prompt if isinstance(prompt, str) else [turn._asdict() for turn in prompt] for prompt in prompts
  ]
  try:
    ids = tokenizers.prompt_ids(tokenizer, written)
  except Problem as problem:
    raise UserError(
      f'a prompt cannot be written for the model of the judges ({problem}); leave it out, or '
      'choose a model with a chat template.'
    ) from None
  return tokenizers.pad_prompts(tokenizer, [row[-length:] for row in ids], length)


def against(said: np.ndarray, votes: np.ndarray) -> dict[str, float]:
  """How a judge's preferences stand to the share of votes, both less 1/2."""
  return {
    'held_out_accuracy': judge_metrics.accuracy(said + 0.5, votes + 0.5),
    'held_out_log_loss': judge_metrics.log_loss(said + 0.5, votes + 0.5),
    'held_out_squared_error': float(np.mean((said - votes) ** 2)),
  }
