"""Training language models, stage by stage: SFT, judges, policies, tournament, exploiters."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nlhf_jax import policies, processes, records
from nlhf_jax.build.language import Experiment, check, make_experiment
from nlhf_jax.build.model import make_mesh
from nlhf_jax.data import synthetic
from nlhf_jax.data.batches import batches, in_random_order, map_chunks, take
from nlhf_jax.evaluation import styles
from nlhf_jax.experiments.competition import compete, perfect_matrices, publish
from nlhf_jax.experiments.exploitability import exploit
from nlhf_jax.experiments.stages import fit, make_policy_step, make_rollout, material
from nlhf_jax.preferences import judges
from nlhf_jax.preferences.judges import Judge
from nlhf_jax.preferences.networks import make_preference_network, make_reward_network
from nlhf_jax.structs import Comparison, Params
from nlhf_jax.training import interrupts, measures
from nlhf_jax.training.loop import Evaluate
from nlhf_jax.training.steps import make_update

WATCHED = 256  # held-out prompts that learning curves are measured on


def start(config: ConfigDict, name: str, workdir: Path, stages: Path) -> None:
  """Builds the experiment and runs it in its work directory; stages are kept in `stages`."""
  check(config)
  with interrupts.deferred(), make_mesh(config):
    experiment = make_experiment(config, name, stages)
    records.write_json(workdir / 'config.json', config.to_dict())
    stages.mkdir(parents=True, exist_ok=True)
    if processes.is_first():
      experiment.corpus.tokenizer.save_pretrained(workdir / 'tokenizer')
    run(experiment, workdir)


def run(experiment: Experiment, workdir: Path) -> dict:
  """Runs or resumes the experiment and writes its outcome to `workdir`; returns the results.

  Raises:
    Interrupted: on Ctrl-C or SIGTERM; running again goes on from there.
  """
  reference = fine_tune(experiment)
  panel = {'learned': train_judge(experiment, reference)}
  if experiment.corpus.embedded:
    oracle = judges.of_texts(synthetic.preference, experiment.corpus.tokenizer)
    panel = {'oracle': oracle, **panel}
  asked = dict(panel)
  if 'reward_model' in experiment.stages:
    asked['reward'] = train_reward_model(experiment, reference)
  if experiment.pairrm:
    asked['pairrm'] = experiment.pairrm()
  evaluate = make_evaluate(experiment, reference, panel['learned'])
  players = {'sft': reference}
  for name, policy in experiment.policies.items():
    slots = train_policy(experiment, name, reference, asked.get(policy.judge), evaluate)
    players |= {player: slots[slot] for player, slot in policy.players.items()}
  jury = {name: judge for name, judge in asked.items() if name != 'reward'}  # not in win rates
  lines = compete(experiment, players, jury)
  exploited = exploit(experiment, players, panel) if experiment.exploiter else []
  return publish(experiment, workdir, lines, exploited)


def fine_tune(experiment: Experiment) -> Params:
  """Supervised fine-tuning of a new model on the demonstrations."""
  score = policies.make_score(experiment.model.decoder)
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
    measures.of_demonstrations,
    training.accumulate,
  )
  examples = batches(experiment.corpus.train.demonstrations, training.batch, experiment.seed)
  params, trains = experiment.model.begin(stage.key), experiment.model.trains
  return fit(stage, training, params, update, examples, evaluate, trains=trains)['policy']


def train_judge(experiment: Experiment, reference: Params) -> Judge:
  """A preference network, going on from the SFT policy's parameters."""
  training, stage = experiment.preference_model, experiment.stages['preference_model']
  train, held_out = experiment.corpus.train.comparisons, experiment.corpus.held_out.comparisons
  network = make_preference_network(
    experiment.model.decoder, experiment.model.sizes.width, experiment.corpus.tokenizer.sep_token_id
  )

  def evaluate(params):
    judge = judges.of_network(network, params['policy'])
    said = map_chunks(lambda chunk, _: judge(chunk), held_out)
    values = agreement(said, held_out.payoff)
    values['held_out_squared_error'] = float(np.mean((said - held_out.payoff) ** 2))
    if experiment.corpus.embedded:
      matrices = perfect_matrices(experiment, judge, take(held_out.prompts, slice(WATCHED)))
      values['weakest_edge_of_cycle'] = styles.weakest_edge(matrices.mean(axis=0).tolist())
    return values

  update = make_update(
    training.algorithm,
    network.logit,
    training.optimizer,
    measures.of_preferences,
    training.accumulate,
  )
  examples = in_random_order(batches(train, training.batch, experiment.seed))
  params = fit(
    stage, training, network.init(reference), update, examples, evaluate, experiment.model.trains
  )
  return judges.of_network(network, params['policy'])


def train_reward_model(experiment: Experiment, reference: Params) -> Judge:
  """A reward network on the same comparisons, going on from the SFT policy's parameters."""
  training, stage = experiment.reward_model, experiment.stages['reward_model']
  train, held_out = experiment.corpus.train.comparisons, experiment.corpus.held_out.comparisons
  network = make_reward_network(
    experiment.model.decoder, experiment.model.sizes.width, experiment.corpus.tokenizer.sep_token_id
  )

  def evaluate(params):
    judge = judges.of_rewards(network, params['policy'])
    return agreement(map_chunks(lambda chunk, _: judge(chunk), held_out), held_out.payoff)

  update = make_update(
    training.algorithm,
    network.score,
    training.optimizer,
    measures.of_rewards,
    training.accumulate,
  )
  examples = batches(train, training.batch, experiment.seed)
  params = fit(
    stage, training, network.init(reference), update, examples, evaluate, experiment.model.trains
  )
  return judges.of_rewards(network, params['policy'])


def agreement(said: np.ndarray, payoff: np.ndarray) -> dict[str, float]:
  """How often a judge agrees with the majority of the votes; a tie counts half."""
  return {'held_out_accuracy': float(np.mean((1 + np.sign(said) * np.sign(payoff)) / 2))}


def train_policy(
  experiment: Experiment, name: str, reference: Params, judge: Judge | None, evaluate: Evaluate
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
  step = make_policy_step(experiment, policy, judge)
  examples = batches(
    material(policy, experiment.corpus.train), policy.training.batch, experiment.seed
  )
  return fit(
    experiment.stages[name],
    policy.training,
    reference,
    step,
    examples,
    evaluate,
    experiment.model.trains,
  )


def make_evaluate(experiment: Experiment, reference: Params, judge: Judge) -> Evaluate:
  """Slots -> how the policy stands to the SFT policy on held-out prompts, always the same ones."""
  score = policies.make_score(experiment.model.decoder)
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
      'win_rate_against_reference': float(payoff.mean()) + 0.5,
      'kl_to_reference': float(log_ratio.mean()),
    }

  return evaluate
