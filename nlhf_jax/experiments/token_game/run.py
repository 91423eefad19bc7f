"""Trains a transformer on a token game, and measures its distance from the equilibrium.

Sampling and updates are those of `language`. Measurements enumerate all responses in double
precision, so that none of them is an estimate.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nlhf_jax.data.batches import take
from nlhf_jax.experiments.game_specs import Learner, Method, TokenGameExperiment
from nlhf_jax.experiments.specs import Stage, Training
from nlhf_jax.experiments.stages import fit, make_policy_update
from nlhf_jax.experiments.token_game.active_learning import (
  count_judged_pairs,
  count_votes,
  make_active_steps,
)
from nlhf_jax.games import exact
from nlhf_jax.games.game import Game, exploitability, gains, kl, log_best_response, make_game
from nlhf_jax.games.solve import solve
from nlhf_jax.models import scoring
from nlhf_jax.reporting import formatting, game_plots
from nlhf_jax.sampling import rollout
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Params
from nlhf_jax.tasks.token_game import page as page
from nlhf_jax.tasks.token_game import responses
from nlhf_jax.training.loop import Steps
from nlhf_jax.training.rollout_step import MakeRollout, make_rollout_step
from nlhf_jax.training.trackers import read_curve

TOLERANCE = 1e-20  # exploitability of the equilibrium
POINTS = 201  # of the curve of a tabular solver


class SolvedGame(NamedTuple):
  """The game of each prompt and its equilibrium, in double precision."""

  game: Game  # with a leading axis X
  nash: Float[Array, 'X R']


def run(experiment: TokenGameExperiment, workdir: Path) -> dict:
  """Trains or loads every method, and writes results, plots and the report to `workdir`.

  Raises:
    Interrupted: on Ctrl-C or SIGTERM; running again resumes.
  """
  params = make_reference(experiment)
  listed = make_list_log_probs(experiment)
  measured = make_solved_game(experiment, listed(params))
  policies_of = {
    label: train_method(experiment, label, params, listed, measured) for label in experiment.methods
  }
  for label in experiment.learners:
    train_learner(experiment, label, params, listed, measured)
  results = summarise(experiment, policies_of, listed, measured)
  payoff = experiment.game.payoff[results['shown']]
  figures = page.draw(results, payoff)
  game_plots.write_png(workdir, figures)
  stages = [*experiment.stages.values(), *(row.stage for row in experiment.learners.values())]
  curves = [record for stage in stages for record in read_curve(stage.folder)]
  json_lines.write(workdir / 'metrics.jsonl', curves)
  page.write(workdir / 'report.html', results, figures, payoff)
  json_lines.write_json(workdir / 'results.json', results)
  print_token_game_results(results)
  return results


def make_reference(experiment: TokenGameExperiment) -> Params:
  """The initial policy: random weights, with scaled embeddings."""
  params = experiment.decoder.init(experiment.key)
  return params | {'embed': jax.tree.map(lambda leaf: experiment.scale * leaf, params['embed'])}


def make_list_log_probs(
  experiment: TokenGameExperiment,
) -> Callable[[Params], Float[np.ndarray, 'X R']]:
  """Parameters -> log-probability of every response to every prompt, in double precision."""
  prompts, responses = jax.tree.map(jnp.asarray, experiment.game[:2])

  @jax.jit
  def log_probs(params):
    return scoring.log_probs(experiment.decoder, params, prompts, responses).sum(axis=-1)

  def listed(params):
    log_pi = np.asarray(log_probs(params), float)
    return log_pi - np.logaddexp.reduce(
      log_pi, axis=-1, keepdims=True
    )  # removes float32's rounding

  return listed


def make_solved_game(
  experiment: TokenGameExperiment, log_reference: Float[np.ndarray, 'X R']
) -> SolvedGame:
  """The games whose reference is the initial policy, and their equilibria."""
  with jax.enable_x64(True):
    game = make_game(experiment.game.payoff, np.exp(log_reference), experiment.tau)
    find = jax.jit(jax.vmap(partial(exact.equilibrium, tolerance=TOLERANCE)))
    return SolvedGame(game, find(game).log_pi)


def measure_policy(measured: SolvedGame, log_pi: Float[np.ndarray, 'X R']) -> dict[str, float]:
  """The metrics of a policy: means over the prompts, and `worst_gap`, a maximum.

  Gaps are exploitabilities at tau and, like the win rate, in win probability; `kl` is
  KL(equilibrium, policy) and `kl_to_reference` KL(policy, reference), in nats.
  """
  with jax.enable_x64(True):
    values = jax.tree.map(np.asarray, measure_by_prompt(measured, jnp.asarray(log_pi, float)))
  means = {name: float(value.mean()) for name, value in values.items()}
  return means | {'worst_gap': float(values['gap'].max())}


@jax.jit
@jax.vmap
def measure_by_prompt(
  measured: SolvedGame, log_pi: Float[Array, 'R']
) -> dict[str, Float[Array, '']]:
  """The metrics of a policy on each prompt."""
  game, nash = measured
  return {
    'gap': exploitability(game, log_pi),
    'kl': kl(nash, log_pi),
    'kl_to_reference': kl(log_pi, game.log_reference),
    'win_rate_against_reference': 0.5 + jnp.exp(log_pi) @ gains(game, game.log_reference),
  }


def train_method(
  experiment: TokenGameExperiment,
  label: str,
  params: Params,
  listed: Callable,
  measured: SolvedGame,
) -> Params:
  """Trains one method from the reference, with the true payoffs; returns its policy."""
  training, judge = experiment.methods[label].training, responses.make_judge(experiment.game)
  rollout_step = make_rollout_step(
    training.algorithm, make_rollouts(experiment), lambda comparison, key: judge(comparison)
  )
  score = scoring.make_score(experiment.decoder)
  steps = Steps(make_policy_update(training, score, rollout_step))
  return train_on_prompts(
    experiment, experiment.stages[label], training, steps, params, listed, measured
  )


def train_learner(
  experiment: TokenGameExperiment,
  label: str,
  params: Params,
  listed: Callable,
  measured: SolvedGame,
) -> Params:
  """Trains one learner from the reference, with its estimate as the judge; returns its policy."""
  learner = experiment.learners[label]
  steps = make_active_steps(
    learner, experiment.game, scoring.make_score(experiment.decoder), make_rollouts(experiment)
  )
  stage, training = learner.stage, learner.training
  return train_on_prompts(experiment, stage, training, steps, params, listed, measured)


def make_rollouts(experiment: TokenGameExperiment) -> MakeRollout:
  """Mixtures -> a rollout of the experiment's decoder."""
  return partial(
    rollout.make_rollout,
    experiment.decoder,
    length=experiment.game.responses.tokens.shape[-1],
    stop=experiment.game.stop,
  )


def train_on_prompts(
  experiment: TokenGameExperiment,
  stage: Stage,
  training: Training,
  steps: Steps,
  params: Params,
  listed: Callable,
  measured: SolvedGame,
) -> Params:
  """Trains a stage, measuring its policy at every evaluation; returns the policy."""

  def evaluate(slots):
    return measure_policy(measured, listed(slots['policy']))

  prompts = experiment.game.prompts
  copies = training.batch // len(prompts.tokens)
  batch = take(prompts, np.tile(np.arange(len(prompts.tokens)), copies))
  examples = grain.MapDataset.source([batch]).repeat()  # every prompt equally often in a batch
  return fit(stage, training, params, steps, examples, evaluate)['policy']


def read_training(stage: Stage) -> list[dict]:
  """The records of the metrics of a stage without that of its start, which is known exactly."""
  return [record for record in read_curve(stage.folder) if record['step']]


def read_evaluations(stage: Stage) -> list[dict]:
  """Those of them that contain evaluations."""
  return [record for record in read_training(stage) if 'worst_gap' in record]


def summarise(
  experiment: TokenGameExperiment,
  policies_of: Mapping[str, Params],
  listed: Callable,
  measured: SolvedGame,
) -> dict:
  """The results of the run, as plain numbers."""
  game = experiment.game
  with jax.enable_x64(True):
    reply = jax.vmap(log_best_response)(measured.game, measured.game.log_reference)
    shown = int(jnp.argmax(measure_by_prompt(measured, reply)['gap']))

  def described(log_pi):
    return measure_policy(measured, log_pi) | {
      'styles': responses.style_shares(game, np.exp(log_pi))
    }

  reference = described(np.asarray(measured.game.log_reference))
  methods = {}
  for label, params in policies_of.items():
    stage, training = experiment.stages[label], experiment.methods[label].training
    seen = read_evaluations(stage)
    at = [0, *(record['step'] for record in seen)]
    course = {
      name: [start, *(record[name] for record in seen)]
      for name, start in reference.items()
      if name != 'styles'
    }
    methods[label] = {
      'at': at,
      **course,
      'solved': first_solved(at, course['gap'], experiment.target),
      'judged': [step * training.batch * count_judged_pairs(training.algorithm) for step in at],
      'seconds': [0.0, *seconds_at(at[1:], read_training(stage))],
      'styles': described(listed(params))['styles'],
      'tabular': run_tabular_solver(experiment.methods[label], measured),
    }
  return {
    'name': experiment.name,
    'tau': experiment.tau,
    'target': experiment.target,
    'prompts': responses.prompt_texts(game),
    'shown': shown,
    'responses': responses.response_texts(game),
    'reference': reference,
    'reply': described(np.asarray(reply)),
    'equilibrium': described(np.asarray(measured.nash)),
    'methods': methods,
    'learners': {
      label: course_of(learner, reference['gap']) for label, learner in experiment.learners.items()
    },
  }


def course_of(learner: Learner, start: float) -> dict[str, list]:
  """A learner's gap at the end of each round, by the number of votes it had used.

  With one-shot learning, its gap as often, and all of its votes each time.
  """
  seen, votes = read_evaluations(learner.stage), count_votes(learner)
  used = [votes if learner.one_shot else votes * number for number in range(1, len(seen) + 1)]
  return {'judged': [0, *used], 'gap': [start, *(record['gap'] for record in seen)]}


def seconds_at(steps: Sequence[int], logged: Sequence[Mapping]) -> list[float]:
  """Seconds of training until each step, with compilation and without evaluations."""
  at = [record['step'] for record in logged]
  spent = np.diff(at, prepend=0) * [record['seconds_per_step'] for record in logged]
  return np.interp(steps, at, np.cumsum(spent)).tolist()


def first_solved(at: Sequence[int], gaps: Sequence[float], target: float) -> int | None:
  """The first step from which on all gaps are below the target; None if the last one is not."""
  below = list(
    itertools.takewhile(lambda point: point[1] < target, zip(at[::-1], gaps[::-1], strict=True))
  )
  return below[-1][0] if below else None


def run_tabular_solver(method: Method, measured: SolvedGame) -> dict:
  """The gap of a method's tabular solver by updates, a mean over the prompts."""
  updates = np.unique(np.linspace(0, method.updates, POINTS).round().astype(np.int32))
  with jax.enable_x64(True):
    path = jax.jit(jax.vmap(lambda game: solve(method.solver, game, updates).last))(measured.game)
    gaps = jax.jit(jax.vmap(jax.vmap(exploitability, (None, 0))))(measured.game, path)
  return {
    'solver': method.solver_name,
    'updates': method.updates,
    'at': updates.tolist(),
    'gap': np.asarray(gaps).mean(axis=0).tolist(),
  }


def print_token_game_results(results: Mapping) -> None:
  """Prints the results."""
  reference, reply, nash = (results[name] for name in ('reference', 'reply', 'equilibrium'))
  print(
    f'\n{len(results["responses"])} responses to each of {len(results["prompts"])} prompts. '
    f'Exploitability at tau = {results["tau"]:g}: {reference["gap"]:.3f} of the reference, '
    f'{reply["gap"]:.3f} of the best response to it, {nash["gap"]:.0e} of the equilibrium, which '
    f'is {nash["kl_to_reference"]:.2f} nats from the reference.'
  )
  heads, cells = page.columns(results)
  title = (
    f'\nExploitability (gap) in win probability, KL in nats; solved means '
    f'below {results["target"]:g} from then on:'
  )
  print(formatting.format_text(title, list(results['methods']), heads, cells))
  if results['learners']:
    print(formatting.format_text('\nExploitability by judged comparisons:', *page.budgets(results)))
