"""The steps of a policy whose opponent, and perhaps prompter, are trained beside it."""

import jax
import jax.numpy as jnp
import numpy as np

from nlhf_jax import distributed, trees
from nlhf_jax.experiments.language.refinement_stage import Refiner, ask_again
from nlhf_jax.experiments.specs import LanguageExperiment, Policy, Stage
from nlhf_jax.experiments.stages import (
  make_policy_rollouts,
  make_policy_score,
  make_policy_update,
)
from nlhf_jax.judges.judge import Judge, with_feedback
from nlhf_jax.models import sharding
from nlhf_jax.structs import Params, Prompts
from nlhf_jax.training import checkpoints
from nlhf_jax.training.divergence import require_verdicts
from nlhf_jax.training.loop import Steps
from nlhf_jax.training.opponent_play import (
  choose_from,
  make_log_ratio,
  make_opponent_play,
  sample_answer,
  sample_together,
  score_chosen,
)
from nlhf_jax.training.players import Player, make_player_steps
from nlhf_jax.training.update import make_update


def make_opponent_steps(experiment: LanguageExperiment, policy: Policy, judge: Judge) -> Steps:
  """The steps of a policy with an opponent."""
  training, opponent, tokenizer = policy.training, policy.opponent, experiment.corpus.tokenizer
  if not experiment.may_abstain(policy.judge):
    judge = require_verdicts(judge)
  rollouts = make_policy_rollouts(experiment, policy)
  if opponent.instruction:

    def ask(prompts, side):
      return ask_again(tokenizer, *distributed.fetch((prompts, side)), opponent.instruction)

    sample = sample_answer(rollouts, ask)
  else:
    sample = sample_together(rollouts)
  score, prompter = make_policy_score(experiment, policy), opponent.prompter
  choose = prompter and choose_from(read_pool(experiment, prompter.pool))
  play = make_opponent_play(
    sample, with_feedback(judge, policy.feedback), make_log_ratio(score), opponent.prices, choose
  )

  def make_player(algorithm, optimizer, score, accumulate=1, **more):
    update = make_update(
      algorithm, score, optimizer, measure_payoff, accumulate, skip=training.skip
    )
    return Player(update, optimizer, **more)

  own = opponent.algorithm, opponent.optimizer
  players = {'opponent': make_player(*own, score, training.accumulate)}
  if prompter:
    uniform = {'logits': jnp.zeros(prompter.pool)}
    players['prompter'] = make_player(
      prompter.algorithm,
      prompter.optimizer,
      score_chosen,
      start=uniform,
      fixed=sharding.put_parameters({'reference': uniform}),
    )
  update = make_policy_update(training, score, stop=tokenizer.eos_token_id)
  return make_player_steps(update, players, play)


def measure_payoff(comparison, scores) -> dict[str, jax.Array]:
  """The mean payoff of a player over the pairs that have one; NaN without any."""
  del scores
  return {'payoff': jnp.nanmean(comparison.payoff)}


def read_pool(experiment: LanguageExperiment, count: int) -> Prompts:
  """The first training prompts, from which a prompter chooses."""
  examples = experiment.corpus.train.prompts
  return examples.read(np.arange(count), examples.max_lengths)


def load_refiners(experiment: LanguageExperiment, reference: Params) -> dict[str, Refiner]:
  """Entry -> the opponent that was trained to answer it; those of finished stages."""
  own, base = trees.split(reference, experiment.model.trains)
  own, found = sharding.put_parameters(own), {}
  for name, policy in experiment.policies.items():
    if policy.opponent and policy.opponent.instruction:
      folder = experiment.stages[name].folder / 'checkpoints'
      params = trees.merge(base, checkpoints.load_player(folder, 'opponent', own))
      refiner = Refiner(params, policy.opponent.instruction)
      found |= {entry: refiner for entry, slot in policy.entries.items() if slot == 'policy'}
  return found


def load_prompter(stage: Stage, count: int) -> np.ndarray:
  """The probability of each prompt of the pool under the prompter of a finished stage, [N]."""
  start = sharding.put_parameters({'logits': jnp.zeros(count)})
  params = checkpoints.load_player(stage.folder / 'checkpoints', 'prompter', start)
  return np.asarray(jax.nn.softmax(distributed.fetch(params['logits'])))
