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

from nlhf_jax import display, policies, records, sampling
from nlhf_jax.build.token_game import Experiment, Method, make_experiment
from nlhf_jax.data import token_game
from nlhf_jax.data.batches import take
from nlhf_jax.evaluation import token_game as page
from nlhf_jax.experiments.stages import fit, make_step
from nlhf_jax.games import exact
from nlhf_jax.games.game import Game, exploitability, gains, kl, log_best_response, make_game
from nlhf_jax.games.solve import solve
from nlhf_jax.structs import Params
from nlhf_jax.training import interrupts

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
    records.write_json(workdir / 'config.json', config.to_dict())
    run(experiment, workdir)


def run(experiment: Experiment, workdir: Path) -> dict:
  """Trains or finds every method, and writes results, plots and the report to `workdir`.

  Raises:
    Interrupted: on Ctrl-C or SIGTERM; running again goes on from there.
  """
  params = make_reference(experiment)
  listed = make_listed(experiment)
  measured = make_measured(experiment, listed(params))
  trained = {
    label: train(experiment, label, params, listed, measured) for label in experiment.methods
  }
  results = summarise(experiment, trained, listed, measured)
  figures = page.draw(results, experiment.game.payoff[results['shown']])
  for name, figure in figures.items():
    (workdir / f'{name}.png').write_bytes(figure)
  curves = [record for label in trained for record in history(experiment, label)]
  records.write(workdir / 'metrics.jsonl', curves)
  page.write(workdir / 'report.html', results, figures)
  records.write_json(workdir / 'results.json', results)
  announce(results)
  return results


def make_reference(experiment: Experiment) -> Params:
  """The policy before training: random, its embeddings scaled."""
  params = experiment.decoder.init(experiment.key)
  return params | {'embed': jax.tree.map(lambda leaf: experiment.scale * leaf, params['embed'])}


def make_listed(experiment: Experiment) -> Callable[[Params], Float[np.ndarray, 'X R']]:
  """Parameters -> log-probability of every response to every prompt, in double precision."""
  prompts, responses = jax.tree.map(jnp.asarray, experiment.game[:2])

  @jax.jit
  def log_probs(params):
    return policies.log_probs(experiment.decoder, params, prompts, responses).sum(axis=-1)

  def listed(params):
    log_pi = np.asarray(log_probs(params), float)
    return log_pi - np.logaddexp.reduce(log_pi, axis=-1, keepdims=True)  # of float32's rounding

  return listed


def make_measured(experiment: Experiment, log_reference: Float[np.ndarray, 'X R']) -> Measured:
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
  experiment: Experiment, label: str, params: Params, listed: Callable, measured: Measured
) -> Params:
  """One method, from the reference; its policy."""
  game, training = experiment.game, experiment.methods[label].training
  judge = token_game.make_judge(game)
  make_rollout = partial(
    sampling.make_rollout,
    experiment.decoder,
    length=game.responses.tokens.shape[-1],
    stop=game.stop,
  )
  score = policies.make_score(experiment.decoder)
  step = make_step(training, score, make_rollout, lambda comparison, key: judge(comparison))

  def evaluate(slots):
    return measure(measured, listed(slots['policy']))

  copies = training.batch // len(game.payoff)
  batch = take(game.prompts, np.tile(np.arange(len(game.payoff)), copies))
  examples = grain.MapDataset.source([batch]).repeat()  # every batch asks every prompt as often
  slots = fit(experiment.stages[label], training, params, step, examples, evaluate)
  return slots['policy']


def history(experiment: Experiment, label: str) -> list[dict]:
  """What was logged as a method trained."""
  return records.read(experiment.stages[label].folder / 'metrics.jsonl')


def summarise(
  experiment: Experiment, trained: Mapping[str, Params], listed: Callable, measured: Measured
) -> dict:
  """Everything the run found, as plain numbers."""
  game = experiment.game
  with jax.enable_x64(True):
    reply = jax.vmap(log_best_response)(measured.game, measured.game.log_reference)
    shown = int(jnp.argmax(by_prompt(measured, reply)['gap']))

  def described(log_pi):
    return measure(measured, log_pi) | {'styles': token_game.style_shares(game, np.exp(log_pi))}

  reference = described(np.asarray(measured.game.log_reference))
  methods = {}
  for label, params in trained.items():
    logged = history(experiment, label)
    looks = [record for record in logged if 'worst_gap' in record]
    at = [0, *(record['step'] for record in looks)]
    course = {
      name: [start, *(record[name] for record in looks)]
      for name, start in reference.items()
      if name != 'styles'
    }
    methods[label] = {
      'at': at,
      **course,
      'solved': solved(at, course['gap'], experiment.target),
      'seconds': [0.0, *seconds_at(at[1:], logged)],
      'styles': described(listed(params))['styles'],
      'tabular': follow(experiment.methods[label], measured),
    }
  return {
    'name': experiment.name,
    'tau': experiment.tau,
    'target': experiment.target,
    'prompts': token_game.prompt_texts(game),
    'shown': shown,
    'responses': token_game.response_texts(game),
    'reference': reference,
    'reply': described(np.asarray(reply)),
    'equilibrium': described(np.asarray(measured.nash)),
    'methods': methods,
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
  print(display.as_text(title, list(results['methods']), heads, cells))
