"""Training language models, stage by stage: SFT, judges, policies, tournament, exploiters."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from nlhf_jax import distributed
from nlhf_jax.algorithms.algorithm import training_data
from nlhf_jax.data import dialogue_texts, tokenizers
from nlhf_jax.data.batches import map_chunks, take
from nlhf_jax.experiments.dialogue_config import freeze_user
from nlhf_jax.experiments.external_judges import print_usage, recorded_usage
from nlhf_jax.experiments.language.exploiter_stage import exploit
from nlhf_jax.experiments.language.judge_stage import make_judge_network, train_judge
from nlhf_jax.experiments.language.opponent_steps import load_refiners, make_opponent_steps
from nlhf_jax.experiments.language.refinement_stage import print_refinement, refine
from nlhf_jax.experiments.language.tournament_stage import publish, run_tournament
from nlhf_jax.experiments.language.voting_rounds import count_votes, make_voting_steps
from nlhf_jax.experiments.language.worst_prompts import find_worst_prompts, print_worst_prompts
from nlhf_jax.experiments.specs import LanguageExperiment
from nlhf_jax.experiments.stages import (
  fit,
  make_batches,
  make_policy_steps,
  make_rollout,
  share_base,
)
from nlhf_jax.judges.combined import MAXMIN, combine_judges
from nlhf_jax.judges.judge import Judge, bradley_terry_judge, judge_from_texts
from nlhf_jax.judges.kinds import ExternalJudge
from nlhf_jax.judges.registry import STAGES, gives_rewards
from nlhf_jax.judges.unfinished import unfinished_costs, unfinished_loses
from nlhf_jax.models import scoring
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Comparison, Params, Prompts, Responses
from nlhf_jax.training import interrupts, step_metrics
from nlhf_jax.training.divergence import require_verdicts
from nlhf_jax.training.generation_server import connect
from nlhf_jax.training.group_weights import Groups
from nlhf_jax.training.loop import Evaluate, Steps
from nlhf_jax.training.update import make_update

WIN_RATE = 'win_rate_against_reference_by_'  # and the name of the judge: a metric
SAMPLES = 4  # responses of each evaluation that a tracker shows


def run(experiment: LanguageExperiment, workdir: Path) -> dict:
  """Runs or resumes every stage and writes the outcome to `workdir`; returns the results.

  Raises:
    Interrupted: if the user asked to stop; running again resumes.
  """
  external = {name: make() for name, make in experiment.external.items()}  # fails early
  if experiment.generation_server:
    connect(experiment.generation_server)  # as early; nothing is sent
  json_lines.write_json(workdir / 'data.json', experiment.corpus.account)
  if distributed.is_first():
    experiment.corpus.tokenizer.save_pretrained(workdir / 'tokenizer')
  with recorded_usage(workdir, external) as accounts:
    reference = fine_tune(experiment)
    experiment = freeze_user(experiment, reference)
    judges, rewards = make_judges(experiment, reference, external)
    panel = {name: judges[name] for name in experiment.panel}
    select = judges[experiment.best_of_judge] if experiment.best_of else None
    evaluate = make_evaluate(experiment, reference, panel)
    # A policy starts as the reference, so that a sample of responses would show its noise alone.
    known = {f'{WIN_RATE}{name}': 0.5 for name in curve_judges(experiment)}
    known['kl_to_reference'] = 0.0
    entries = {'sft': reference}
    for name, policy in experiment.policies.items():
      learns_rewards = 'reward' in policy.training.algorithm.payoffs and policy.judge in rewards
      judge = (rewards if learns_rewards else judges).get(policy.judge)
      if policy.voting:
        steps = make_voting_steps(experiment, name, judges[policy.judge], reference)
      elif policy.opponent:
        steps = make_opponent_steps(experiment, policy, judge)
      else:
        steps = make_policy_steps(experiment, policy, judge)
      data = getattr(experiment.corpus.train, training_data(policy.training.algorithm))
      examples = make_batches(data, policy.training, experiment.seed)
      stage, trains = experiment.stages[name], experiment.model.trains
      slots = fit(stage, policy.training, reference, steps, examples, evaluate, trains, known)
      entries |= {entry: slots[slot] for entry, slot in policy.entries.items()}
    samples = run_tournament(experiment, entries, panel, select)
    more = {'worst_prompts': find_worst_prompts(experiment, entries, panel)}
    if experiment.refinement:
      refiners = load_refiners(experiment, reference)
      more['refinement'] = refine(experiment, entries, panel, refiners)
    exploited = exploit(experiment, entries, panel) if experiment.exploiter else []
  votes = {
    name: count_votes(experiment.stages[name], policy.voting)
    for name, policy in experiment.policies.items()
    if policy.voting
  }
  more = {name: found for name, found in {'votes': votes, **more}.items() if found}
  results = publish(experiment, workdir, samples, exploited, accounts, more)
  if 'refinement' in more:
    print_refinement(more['refinement'])
  if 'worst_prompts' in more:
    print_worst_prompts(more['worst_prompts'])
  print_usage(accounts)
  return results


def fine_tune(experiment: LanguageExperiment) -> Params:
  """Trains the SFT policy on the demonstrations, or loads it; returns its parameters."""
  score = scoring.make_score(experiment.model.decoder)
  held_out = experiment.corpus.held_out.demonstrations

  @jax.jit
  def log_prob(params, demonstrations):
    return jnp.sum(score(params, demonstrations).left, axis=(1, 2))

  def measure(params, chunk):
    interrupts.check('held-out demonstrations')
    return log_prob(params, chunk)

  def evaluate(params):
    total = map_chunks(lambda chunk, _: measure(params['policy'], chunk), held_out).sum()
    return {'held_out_nats_per_token': float(-total / held_out.left.mask.sum())}

  training, stage = experiment.sft, experiment.stages['sft']
  update = make_update(
    training.algorithm,
    score,
    training.optimizer,
    step_metrics.demonstration_metrics,
    training.accumulate,
    skip=training.skip,
  )
  examples = make_batches(experiment.corpus.train.demonstrations, training, experiment.seed)
  params, trains = experiment.model.begin(stage.key), experiment.model.trains
  return fit(stage, training, params, Steps(update), examples, evaluate, trains)['policy']


def make_judges(
  experiment: LanguageExperiment, reference: Params, external: Mapping[str, ExternalJudge]
) -> tuple[dict[str, Judge | Groups], dict[str, Judge]]:
  """Name -> judge P - 1/2, and name -> judge r - r' of those that give rewards.

  They are external judges, the oracle if there is one, trained judges, and combinations.
  """
  tokenizer = experiment.corpus.tokenizer
  judges = {name: judge.make_judge(tokenizer) for name, judge in external.items()}
  rewards = {
    name: judge.make_rewards(tokenizer) for name, judge in external.items() if judge.make_rewards
  }
  if experiment.corpus.oracle:
    judges['oracle'] = judge_from_texts(experiment.corpus.oracle, tokenizer)
  for name, stage in STAGES.items():
    if stage in experiment.judges:
      network = make_judge_network(experiment, stage)
      judge = network.judge(train_judge(experiment, stage, reference))
      judges[name] = bradley_terry_judge(judge) if gives_rewards(name) else judge
      rewards |= {name: judge} if gives_rewards(name) else {}
  if experiment.held_apart:
    network = make_judge_network(experiment, 'held_apart')
    judges['held_apart'] = network.probability_judge(
      train_judge(experiment, 'held_apart', reference)
    )
  if experiment.unfinished_loses:
    stop = tokenizer.eos_token_id
    judges = {name: unfinished_loses(judge, stop) for name, judge in judges.items()}
    rewards = {name: unfinished_costs(judge, stop) for name, judge in rewards.items()}
  for name, combination in experiment.combined.items():
    parts = {part: judges[part] for part in combination.judges}
    if combination.by == MAXMIN:
      judges[name] = Groups(parts, combination.parameter)
    else:
      judges[name] = combine_judges(list(parts.values()), combination.rule)
  return judges, rewards


def show_samples(experiment: LanguageExperiment, prompts: Prompts, responses: Responses) -> str:
  """The first few prompts and responses, as one text."""
  tokenizer, first = experiment.corpus.tokenizer, slice(SAMPLES)
  asked = tokenizers.prompt_texts(tokenizer, prompts.tokens[first], prompts.mask[first])
  given = dialogue_texts.response_texts(tokenizer, take(responses, first))
  pairs = zip(asked, given, strict=True)
  return '\n\n'.join(f'prompt: {prompt}\nresponse: {response}' for prompt, response in pairs)


def curve_judges(experiment: LanguageExperiment) -> list[str]:
  """The judges that measure learning curves: the last one of the tournament.

  If it is held apart, the other trained judges too: where they part from it, a policy exploits
  their errors.
  """
  last = experiment.panel[-1]
  return [
    name for name in experiment.panel if name == last or (experiment.held_apart and name in STAGES)
  ]


def make_evaluate(
  experiment: LanguageExperiment, reference: Params, panel: Mapping[str, Judge]
) -> Evaluate:
  """Slots -> win rate against the SFT policy and KL from it, on a fixed set of held-out prompts.

  The metric of the win rate is named after its judge, one of `curve_judges`.
  """
  measured = {
    name: panel[name] if experiment.may_abstain(name) else require_verdicts(panel[name])
    for name in curve_judges(experiment)
  }
  score = scoring.make_score(experiment.model.decoder)
  rollout = make_rollout(experiment, [{'policy': 1.0}, {'reference': 1.0}])
  prompts = take(experiment.corpus.held_out.prompts, slice(experiment.curve_prompts))
  key = experiment.stages['sft'].key

  @jax.jit
  def log_prob(params, comparison):
    return jnp.sum(score(params, comparison).left, axis=(1, 2))

  def evaluate(slots):
    both = share_base(experiment, {'policy': slots['policy'], 'reference': reference})

    def compare(chunk, number):
      interrupts.check('held-out prompts')
      left, right = rollout(both, chunk, jax.random.fold_in(key, number))
      log_ratio = jnp.sum(left.log_probs, axis=(1, 2)) - log_prob(
        reference, Comparison(chunk, left)
      )
      comparison = Comparison(chunk, left, right)
      return {name: judge(comparison) for name, judge in measured.items()}, log_ratio, left

    payoffs, log_ratio, left = map_chunks(compare, prompts, experiment.tournament_batch)
    return {
      **{f'{WIN_RATE}{name}': float(np.nanmean(payoff)) + 0.5 for name, payoff in payoffs.items()},
      'kl_to_reference': float(log_ratio.mean()),
      'samples': show_samples(experiment, prompts, left),
      'response_lengths': left.own.sum(axis=-1).ravel(),
    }

  return evaluate
