"""The stages that train judges, each starting from the SFT policy."""

import zlib
from collections.abc import Sequence

import jax
import numpy as np

from nlhf_jax.data import tokenizers
from nlhf_jax.data.batches import Examples, map_chunks, swap_sides, take
from nlhf_jax.data.readers import Problem
from nlhf_jax.data.schemas import Prompt
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import judge_metrics
from nlhf_jax.experiments.language.tournament_stage import make_interruptible, perfect_matrices
from nlhf_jax.experiments.specs import LanguageExperiment, Stage, Training
from nlhf_jax.experiments.stages import fit, make_batches
from nlhf_jax.judges.kinds import Backbone, JudgeNetwork
from nlhf_jax.judges.registry import BY_STAGE
from nlhf_jax.progress import progress
from nlhf_jax.structs import Params, Prompts, Responses
from nlhf_jax.training import step_metrics
from nlhf_jax.training.loop import Steps
from nlhf_jax.training.update import Measure, make_update

INIT = zlib.crc32(b'init')  # folded into a stage's key; step numbers are far smaller
METRICS: dict[str, Measure] = {
  'probability': step_metrics.preference_metrics,
  'reward': step_metrics.reward_metrics,
}


def make_judge_network(experiment: LanguageExperiment, stage: str) -> JudgeNetwork:
  """The network that a stage trains; `held_apart` is that of the judge held apart."""
  return make_network(experiment, kind_of(experiment, stage), experiment.stages[stage].key)


def make_network(experiment: LanguageExperiment, kind: str, key: jax.Array) -> JudgeNetwork:
  """The network of a kind of judge, by the name of its stage, for a stage with this key."""
  backbone = Backbone(
    experiment.model.decoder,
    experiment.model.sizes.width,
    experiment.corpus.tokenizer.sep_token_id,
    experiment.response_length,
  )
  section = experiment.judge_sections[kind]
  return BY_STAGE[kind].make(backbone, section, jax.random.fold_in(key, INIT))


def kind_of(experiment: LanguageExperiment, stage: str) -> str:
  """The stage of the kind of judge that a stage trains: itself, unless it is held apart."""
  return experiment.held_apart.kind if stage == 'held_apart' else stage


def train_judge(experiment: LanguageExperiment, name: str, reference: Params) -> Params:
  """The parameters of the judge of a stage, trained from those of the SFT policy, `reference`."""
  source = experiment.held_apart if name == 'held_apart' else experiment.corpus.train
  return fit_judge(
    experiment,
    experiment.stages[name],
    kind_of(experiment, name),
    experiment.judges[name],
    source.comparisons,
    reference,
  )


def fit_judge(
  experiment: LanguageExperiment,
  stage: Stage,
  kind: str,
  training: Training,
  comparisons: Examples,
  reference: Params,
) -> Params:
  """The parameters of a judge, trained on comparisons from those of the SFT policy, or loaded.

  Args:
    experiment: with the held-out comparisons that it is measured on, if there are any.
    stage: of the judge.
    kind: the stage of its kind of judge.
    training: of the judge.
    comparisons: to train on.
    reference: the SFT policy.
  """
  held_out = experiment.corpus.held_out.comparisons
  network, annotator = make_network(experiment, kind, stage.key), experiment.corpus.annotator

  def evaluate(slots):
    if not len(held_out.payoff):
      return {}
    judge = make_interruptible(network.probability_judge(slots['policy']), 'held-out comparisons')
    label = f'{stage.name}: held-out comparisons'
    with progress(len(held_out.payoff), label, 'comparison', delay=5.0, leave=False) as bar:
      payoff = map_chunks(lambda chunk, _: judge(chunk), held_out, update=bar.update)
    values = held_out_metrics(payoff, held_out.payoff)
    if annotator:
      matrices = perfect_matrices(
        experiment, judge, take(held_out.prompts, slice(experiment.curve_prompts))
      )
      values['weakest_edge_of_cycle'] = annotator.weakest_edge(matrices.mean(axis=0).tolist())
    return values

  update = make_update(
    training.algorithm,
    network.score,
    training.optimizer,
    METRICS[BY_STAGE[kind].payoff],
    training.accumulate,
    skip=training.skip,
  )
  examples = swap_sides(make_batches(comparisons, training, experiment.seed))
  init, trains = network.init(reference), experiment.model.trains
  # Before the first step a judge is at chance, and all held-out comparisons are evaluated.
  training = training._replace(schedule=training.schedule._replace(measure_start=False))
  return fit(stage, training, init, Steps(update), examples, evaluate, trains)['policy']


def tokenize_responses(experiment: LanguageExperiment, texts: Sequence[str]) -> Responses:
  """One response for each prompt, truncated to the experiment's response length."""
  tokenizer, length = experiment.corpus.tokenizer, experiment.response_length
  ids = tokenizers.response_ids(tokenizer, texts)
  return tokenizers.pad_responses(tokenizer, [row[:length] for row in ids], length)


def tokenize_prompts(experiment: LanguageExperiment, prompts: Sequence[Prompt]) -> Prompts:
  """The prompts, truncated at the start to the experiment's prompt length.

  Raises:
    UserError: if one is a conversation, and the model has no chat template.
  """
  tokenizer = experiment.corpus.tokenizer
  length = experiment.corpus.held_out.prompts.tokens.shape[1]
  messages = [
    prompt if isinstance(prompt, str) else [turn._asdict() for turn in prompt] for prompt in prompts
  ]
  try:
    ids = tokenizers.prompt_ids(tokenizer, messages)
  except Problem as problem:
    raise UserError(
      f"a prompt cannot be formatted for the judges' model ({problem}); leave it out, or "
      'choose a model with a chat template.'
    ) from None
  return tokenizers.pad_prompts(tokenizer, [row[-length:] for row in ids], length)


def held_out_metrics(payoff: np.ndarray, votes: np.ndarray) -> dict[str, float]:
  """Metrics of a judge's payoffs against the share of votes for the left response, less 1/2."""
  return {
    'held_out_accuracy': judge_metrics.accuracy(payoff + 0.5, votes + 0.5),
    'held_out_log_loss': judge_metrics.log_loss(payoff + 0.5, votes + 0.5),
    'held_out_squared_error': float(np.mean((payoff - votes) ** 2)),
  }
