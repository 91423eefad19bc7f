"""Training language models on a game small enough to list: how far each is from the equilibrium.

The transformer plays, samples and learns as in `language`; only the measuring differs. It lists
every response, in double precision, and estimates nothing.
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
from ml_collections import ConfigDict

from nlhf_jax.data.batches import take
from nlhf_jax.experiments.specs import Learner, Method, Stage, TokenGameExperiment, Training
from nlhf_jax.experiments.stages import fit, make_step
from nlhf_jax.experiments.token_game.active_learning import make_asking_step, pairs
from nlhf_jax.experiments.token_game.config import make_experiment
from nlhf_jax.games import exact
from nlhf_jax.games.game import Game, exploitability, gains, kl, log_best_response, make_game
from nlhf_jax.games.solve import solve
from nlhf_jax.models import scoring
from nlhf_jax.reporting import tables
from nlhf_jax.sampling import rollout
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Params
from nlhf_jax.tasks.token_game import page as page
from nlhf_jax.tasks.token_game import responses
from nlhf_jax.training import interrupts
from nlhf_jax.training.loop import Step
from nlhf_jax.training.rollout_step import MakeRollout

TOLERANCE = 1e-20  # exploitability of the equilibrium
LOOKS = 201  # points of a solver's course


class Measured(NamedTuple):
  """A game on each prompt and its equilibria, in double precision."""

  game: Game  # with a leading axis X
  nash: Float[Array, 'X R']


def start(config: ConfigDict, name: str, workdir: Path, stages: Path) -> None:
  """Builds the experiment and runs it in its work directory; stages are kept in `stages`."""
  with interrupts.deferred():
    experiment = make_experiment(config, name, stages)
    json_lines.write_json(workdir / 'config.json', config.to_dict())
    run(experiment, workdir)


def run(experiment: TokenGameExperiment, workdir: Path) -> dict:
  """Trains or finds every method, and writes results, plots and the report to `workdir`.

  Raises:
    Interrupted: on Ctrl-C or SIGTERM; running again goes on from there.
  """
  params = make_reference(experiment)
  listed = make_listed(experiment)
  measured = make_measured(experiment, listed(params))
  policies_of = {
    label: train(experiment, label, params, listed, measured) for label in experiment.methods
  }
  for label in experiment.learners:
    learn(experiment, label, params, listed, measured)
  results = summarise(experiment, policies_of, listed, measured)
  figures = page.draw(results, experiment.game.payoff[results['shown']])
  for name, figure in figures.items():
    (workdir / f'{name}.png').write_bytes(figure)
  stages = [*experiment.stages.values(), *(row.stage for row in experiment.learners.values())]
  curves = [record for stage in stages for record in history(stage)]
  json_lines.write(workdir / 'metrics.jsonl', curves)
  page.write(workdir / 'report.html', results, figures)
  json_lines.write_json(workdir / 'results.json', results)
  announce(results)
  return results


def make_reference(experiment: TokenGameExperiment) -> Params:
  """The policy before training: random, its embeddings scaled."""
  params = experiment.decoder.init(experiment.key)
  return params | {'embed': jax.tree.map(lambda leaf: experiment.scale * leaf, params['embed'])}


def make_listed(experiment: TokenGameExperiment) -> Callable[[Params], Float[np.ndarray, 'X R']]:
  """Parameters -> log-probability of every response to every prompt, in double precision."""
  prompts, responses = jax.tree.map(jnp.asarray, experiment.game[:2])

  @jax.jit
  def log_probs(params):
    return scoring.log_probs(experiment.decoder, params, prompts, responses).sum(axis=-1)

  def listed(params):
    log_pi = np.asarray(log_probs(params), float)
    return log_pi - np.logaddexp.reduce(log_pi, axis=-1, keepdims=True)  # of float32's rounding

  return listed


def make_measured(
  experiment: TokenGameExperiment, log_reference: Float[np.ndarray, 'X R']
) -> Measured:
  """The games whose reference is the policy before training, and their equilibria."""
  with jax.enable_x64(True):
    game = make_game(experiment.game.payoff, np.exp(log_reference), experiment.tau)
    find = jax.jit(jax.vmap(partial(exact.equilibrium, tolerance=TOLERANCE)))
    return Measured(game, find(game).log_pi)


def measure(measured: Measured, log_pi: Float[np.ndarray, 'X R']) -> dict[str, float]:
  """The scalars of a policy: means over the prompts, but for `worst_gap`.

  Gaps are exploitabilities at tau, in win probability as the win rate is; `kl` is KL(equilibrium,
  policy) and `kl_to_reference` KL(policy, reference), in nats.
  """
  with jax.enable_x64(True):
    values = jax.tree.map(np.asarray, by_prompt(measured, jnp.asarray(log_pi, float)))
  means = {name: float(value.mean()) for name, value in values.items()}
  return means | {'worst_gap': float(values['gap'].max())}


@jax.jit
@jax.vmap
def by_prompt(measured: Measured, log_pi: Float[Array, 'R']) -> dict[str, Float[Array, '']]:
  """The same, of each prompt."""
  game, nash = measured
  return {
    'gap': exploitability(game, log_pi),
    'kl': kl(nash, log_pi),
    'kl_to_reference': kl(log_pi, game.log_reference),
    'win_rate_against_reference': 0.5 + jnp.exp(log_pi) @ gains(game, game.log_reference),
  }


def train(
  experiment: TokenGameExperiment, label: str, params: Params, listed: Callable, measured: Measured
) -> Params:
  """One method, from the reference, judged by the truth; its policy."""
  training, judge = experiment.methods[label].training, responses.make_judge(experiment.game)
  step = make_step(
    training,
    scoring.make_score(experiment.decoder),
    make_rollouts(experiment),
    lambda comparison, key: judge(comparison),
  )
  return trained(experiment, experiment.stages[label], training, step, params, listed, measured)


def learn(
  experiment: TokenGameExperiment, label: str, params: Params, listed: Callable, measured: Measured
) -> Params:
  """One learner, from the reference, judged by what votes have said so far; its policy."""
  learner = experiment.learners[label]
  step = make_asking_step(
    learner, experiment.game, scoring.make_score(experiment.decoder), make_rollouts(experiment)
  )
  stage, training = learner.stage, learner.training
  return trained(experiment, stage, training, step, params, listed, measured)


def make_rollouts(experiment: TokenGameExperiment) -> MakeRollout:
  """Mixtures -> a rollout of the experiment's decoder."""
  return partial(
    rollout.make_rollout,
    experiment.decoder,
    length=experiment.game.responses.tokens.shape[-1],
    stop=experiment.game.stop,
  )


def trained(
  experiment: TokenGameExperiment,
  stage: Stage,
  training: Training,
  step: Step,
  params: Params,
  listed: Callable,
  measured: Measured,
) -> Params:
  """The policy of a stage, which is measured at every look."""

  def evaluate(slots):
    return measure(measured, listed(slots['policy']))

  prompts = experiment.game.prompts
  copies = training.batch // len(prompts.tokens)
  batch = take(prompts, np.tile(np.arange(len(prompts.tokens)), copies))
  examples = grain.MapDataset.source([batch]).repeat()  # every batch asks every prompt as often
  return fit(stage, training, params, step, examples, evaluate)['policy']


def history(stage: Stage) -> list[dict]:
  """What was logged as a stage trained."""
  return json_lines.read(stage.folder / 'metrics.jsonl')


def looks(stage: Stage) -> list[dict]:
  """What was logged where it was measured."""
  return [record for record in history(stage) if 'worst_gap' in record]


def summarise(
  experiment: TokenGameExperiment,
  policies_of: Mapping[str, Params],
  listed: Callable,
  measured: Measured,
) -> dict:
  """Everything the run found, as plain numbers."""
  game = experiment.game
  with jax.enable_x64(True):
    reply = jax.vmap(log_best_response)(measured.game, measured.game.log_reference)
    shown = int(jnp.argmax(by_prompt(measured, reply)['gap']))

  def described(log_pi):
    return measure(measured, log_pi) | {'styles': responses.style_shares(game, np.exp(log_pi))}

  reference = described(np.asarray(measured.game.log_reference))
  methods = {}
  for label, params in policies_of.items():
    stage, training = experiment.stages[label], experiment.methods[label].training
    seen = looks(stage)
    at = [0, *(record['step'] for record in seen)]
    course = {
      name: [start, *(record[name] for record in seen)]
      for name, start in reference.items()
      if name != 'styles'
    }
    methods[label] = {
      'at': at,
      **course,
      'solved': solved(at, course['gap'], experiment.target),
      'judged': [step * training.batch * pairs(training.algorithm) for step in at],
      'seconds': [0.0, *seconds_at(at[1:], history(stage))],
      'styles': described(listed(params))['styles'],
      'tabular': follow(experiment.methods[label], measured),
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
  """A learner's gap at the end of each round, by the votes it had asked for."""
  seen = looks(learner.stage)
  votes = learner.batches * learner.training.batch
  return {
    'judged': [votes * number for number in range(len(seen) + 1)],
    'gap': [start, *(record['gap'] for record in seen)],
  }


def seconds_at(steps: Sequence[int], logged: Sequence[Mapping]) -> list[float]:
  """Seconds of training until each step, compiling included, measuring not."""
  at = [record['step'] for record in logged]
  spent = np.diff(at, prepend=0) * [record['seconds_per_step'] for record in logged]
  return np.interp(steps, at, np.cumsum(spent)).tolist()


def solved(at: Sequence[int], gaps: Sequence[float], target: float) -> int | None:
  """The first look from which on every gap is below the target; None if the last one is not."""
  below = list(
    itertools.takewhile(lambda look: look[1] < target, zip(at[::-1], gaps[::-1], strict=True))
  )
  return below[-1][0] if below else None


def follow(method: Method, measured: Measured) -> dict:
  """The course of a method's tabular solver: its gap, a mean over the prompts."""
  updates = np.unique(np.linspace(0, method.updates, LOOKS).round().astype(np.int32))
  with jax.enable_x64(True):
    path = jax.jit(jax.vmap(lambda game: solve(method.solver, game, updates).last))(measured.game)
    gaps = jax.jit(jax.vmap(jax.vmap(exploitability, (None, 0))))(measured.game, path)
  return {
    'solver': method.solver_name,
    'updates': method.updates,
    'at': updates.tolist(),
    'gap': np.asarray(gaps).mean(axis=0).tolist(),
  }


def announce(results: Mapping) -> None:
  """Prints what was found."""
  reference, reply, nash = (results[name] for name in ('reference', 'reply', 'equilibrium'))
  print(
    f'\n{len(results["responses"])} responses to each of {len(results["prompts"])} prompts. '
    f'Exploitability at tau = {results["tau"]:g}: {reference["gap"]:.3f} of the reference, '
    f'{reply["gap"]:.3f} of the best response to it, {nash["gap"]:.0e} of the equilibrium, which '
    f'is {nash["kl_to_reference"]:.2f} nats from the reference.'
  )
  heads, cells = page.columns(results)
  title = (
    f'\nExploitability (gap) in win probability, KL in nats; solved is below {results["target"]:g} '
    'for good:'
  )
  print(tables.as_text(title, list(results['methods']), heads, cells))
  if results['learners']:
    print(tables.as_text('\nExploitability by judged comparisons:', *page.budgets(results)))
