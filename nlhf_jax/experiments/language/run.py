"""Training language models, stage by stage: SFT, judges, policies, tournament, exploiters."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nlhf_jax import distributed
from nlhf_jax.algorithms.algorithm import learns_from
from nlhf_jax.data.batches import map_chunks, take
from nlhf_jax.experiments.external_judges import accounted, announce
from nlhf_jax.experiments.judge_config import Outside
from nlhf_jax.experiments.language.config import TRAINED, check, make_experiment
from nlhf_jax.experiments.language.exploiter_stage import exploit
from nlhf_jax.experiments.language.judge_stage import WATCHED, make_kind, train_judge
from nlhf_jax.experiments.language.tournament_stage import compete, publish
from nlhf_jax.experiments.model_config import make_mesh
from nlhf_jax.experiments.specs import LanguageExperiment
from nlhf_jax.experiments.stages import (
  batches_of,
  fit,
  make_policy_ahead,
  make_policy_step,
  make_rollout,
)
from nlhf_jax.judges.judge import Judge, by_bradley_terry, of_texts
from nlhf_jax.models import scoring
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Comparison, Params
from nlhf_jax.tasks.summaries import generator
from nlhf_jax.training import interrupts, step_metrics
from nlhf_jax.training.loop import Evaluate
from nlhf_jax.training.update import make_update


def start(config: ConfigDict, name: str, workdir: Path, stages: Path) -> None:
  """Builds the experiment and runs it in its work directory; stages are kept in `stages`."""
  check(config)
  with interrupts.deferred(), make_mesh(config):
    experiment = make_experiment(config, name, stages)
    json_lines.write_json(workdir / 'config.json', config.to_dict())
    json_lines.write_json(workdir / 'data.json', experiment.corpus.account)
    stages.mkdir(parents=True, exist_ok=True)
    if distributed.is_first():
      experiment.corpus.tokenizer.save_pretrained(workdir / 'tokenizer')
    run(experiment, workdir)


def run(experiment: LanguageExperiment, workdir: Path) -> dict:
  """Runs or resumes the experiment and writes its outcome to `workdir`; returns the results.

  Raises:
    Interrupted: on Ctrl-C or SIGTERM; running again goes on from there.
  """
  outside = {name: make() for name, make in experiment.given.items()}  # what is wrong is said first
  with accounted(workdir, outside) as accounts:
    lines, exploited = play(experiment, outside)
  results = publish(experiment, workdir, lines, exploited, accounts)
  announce(accounts)
  return results


def play(
  experiment: LanguageExperiment, outside: Mapping[str, Outside]
) -> tuple[Sequence[dict], Sequence[dict]]:
  """All stages; the records of the tournament and of the exploiters."""
  reference = fine_tune(experiment)
  asked = make_judges(experiment, reference, outside)
  panel = {name: asked[name] for name in experiment.panel}
  if 'reward' in panel:
    panel['reward'] = by_bradley_terry(panel['reward'])
  evaluate = make_evaluate(experiment, reference, panel)
  players = {'sft': reference}
  for name, policy in experiment.policies.items():
    slots = train_policy(experiment, name, reference, asked.get(policy.judge), evaluate)
    players |= {player: slots[slot] for player, slot in policy.players.items()}
  lines = compete(experiment, players, panel)
  return lines, exploit(experiment, players, panel) if experiment.exploiter else []


def fine_tune(experiment: LanguageExperiment) -> Params:
  """Supervised fine-tuning of a new model on the demonstrations."""
  score = scoring.make_score(experiment.model.decoder)
  held_out = experiment.corpus.held_out.demonstrations

  @jax.jit
  def log_prob(params, demonstrations):
    return jnp.sum(score(params, demonstrations).left, axis=(1, 2))

  def evaluate(params):
    total = map_chunks(lambda chunk, _: log_prob(params['policy'], chunk), held_out).sum()
    return {'held_out_nats_per_token': float(-total / held_out.left.mask.sum())}

  training, stage = experiment.sft, experiment.stages['sft']
  update = make_update(
    training.algorithm,
    score,
    training.optimizer,
    step_metrics.of_demonstrations,
    training.accumulate,
  )
  examples = batches_of(experiment.corpus.train.demonstrations, training, experiment.seed)
  params, trains = experiment.model.begin(stage.key), experiment.model.trains
  return fit(stage, training, params, update, examples, evaluate, trains=trains)['policy']


def make_judges(
  experiment: LanguageExperiment, reference: Params, outside: Mapping[str, Outside]
) -> dict[str, Judge]:
  """Name -> judge: the oracle, if it is known, those from outside, and those that are trained."""
  tokenizer = experiment.corpus.tokenizer
  asked = {name: given.of_tokens(tokenizer) for name, given in outside.items()}
  if experiment.corpus.embedded:
    asked['oracle'] = of_texts(generator.preference, tokenizer)
  for name, stage in TRAINED.items():
    if stage in experiment.judges:
      kind = make_kind(experiment, stage)
      asked[name] = kind.judge(train_judge(experiment, stage, reference))
  return asked


def train_policy(
  experiment: LanguageExperiment,
  name: str,
  reference: Params,
  judge: Judge | None,
  evaluate: Evaluate,
) -> Mapping[str, Params]:
  """One policy of the catalogue, from the SFT policy's parameters; its slots.

  Args:
    experiment: all of it.
    name: of the policy.
    reference: the SFT policy's parameters.
    judge: whose word the policy trains on, if it needs one.
    evaluate: gives the learning curve.
  """
  policy = experiment.policies[name]
  if policy.ahead:
    begin, step, close = make_policy_ahead(experiment, policy, judge)
  else:
    begin, step, close = None, make_policy_step(experiment, policy, judge), lambda: None
  material = getattr(experiment.corpus.train, learns_from(policy.training.algorithm))
  examples = batches_of(material, policy.training, experiment.seed)
  try:
    return fit(
      experiment.stages[name],
      policy.training,
      reference,
      step,
      examples,
      evaluate,
      experiment.model.trains,
      begin,
    )
  finally:
    close()


def make_evaluate(
  experiment: LanguageExperiment, reference: Params, panel: Mapping[str, Judge]
) -> Evaluate:
  """Slots -> how the policy stands to the SFT policy on held-out prompts, always the same ones.

  The last judge of the panel says so, and the metric has its name.
  """
  name, judge = list(panel.items())[-1]
  score = scoring.make_score(experiment.model.decoder)
  rollout = make_rollout(experiment, [{'policy': 1.0}, {'reference': 1.0}])
  prompts = take(experiment.corpus.held_out.prompts, slice(WATCHED))
  key = experiment.stages['sft'].key

  @jax.jit
  def log_prob(params, comparison):
    return jnp.sum(score(params, comparison).left, axis=(1, 2))

  def evaluate(slots):
    both = {'policy': slots['policy'], 'reference': reference}

    def play(chunk, number):
      left, right = rollout(both, chunk, jax.random.fold_in(key, number))
      log_ratio = jnp.sum(left.log_probs, axis=(1, 2)) - log_prob(
        reference, Comparison(chunk, left)
      )
      return judge(Comparison(chunk, left, right)), log_ratio

    payoff, log_ratio = map_chunks(play, prompts, experiment.tournament_batch)
    return {
      f'win_rate_against_reference_by_{name}': float(np.nanmean(payoff)) + 0.5,
      'kl_to_reference': float(log_ratio.mean()),
    }

  return evaluate
