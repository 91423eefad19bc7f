"""Solving a game over a few actions: every solver's way to the exact equilibria."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict
from tqdm import tqdm

from nlhf_jax.experiments.specs import SolverRun, TabularExperiment
from nlhf_jax.experiments.tabular.config import make_experiment
from nlhf_jax.games import choice, exact, rlhf, spectrum
from nlhf_jax.games.game import Game, duality_gap, kl
from nlhf_jax.games.solve import solve, when
from nlhf_jax.reporting import game_page, game_plots, tables
from nlhf_jax.storage import json_lines

SHOWN = 12  # actions named in the tables
DRAWN = 1500  # updates shown of a trajectory
TOLERANCE = 1e-22  # exploitability of the equilibria that solvers are measured against


class Target(NamedTuple):
  """What the solvers are measured against, one row a prompt; probabilities' logarithms."""

  nash: Float[Array, 'X K'] | None  # at the price tau; none if it is 0
  lottery: Float[Array, 'X K']  # without a price


def start(config: ConfigDict, name: str, workdir: Path, stages: Path) -> None:
  """Builds the experiment and runs it in its work directory; there are no stages to keep."""
  del stages
  with jax.enable_x64(True):
    experiment = make_experiment(config)
    json_lines.write_json(workdir / 'config.json', config.to_dict())
    run(experiment, name, workdir)


def run(experiment: TabularExperiment, name: str, workdir: Path) -> dict:
  """Solves the game with every solver, and writes results, plots and the report to `workdir`."""
  game = experiment.game
  for old in ('results.json', 'report.html', *(f'{figure}.png' for figure in game_page.CAPTIONS)):
    (workdir / old).unlink(missing_ok=True)  # of another game, perhaps
  target, facts = analyse(experiment)
  outcomes, paths = {}, {}
  with tqdm(experiment.rows.items(), unit='solver') as bar:
    for label, row in bar:
      bar.set_description(label)
      outcomes[label], paths[label] = follow(row, game, experiment.start, target)
  results = {'name': name, **facts, 'solvers': outcomes}
  figures = draw(experiment, results, paths, target)
  for title, figure in figures.items():
    (workdir / f'{title}.png').write_bytes(figure)
  game_page.write(workdir / 'report.html', results, figures)
  json_lines.write_json(workdir / 'results.json', results)
  announce(results)
  return results


def analyse(experiment: TabularExperiment) -> tuple[Target, dict]:
  """The exact equilibria of the game, and what can be said of it without any solver."""
  table, game = experiment.table, experiment.game
  payoffs, tau = np.asarray(game.payoff), float(game.tau[0])
  lottery = np.array([exact.maximal_lottery(payoff) for payoff in payoffs])
  nash = None
  facts = {
    'game': experiment.name,
    'notes': list(table.notes),
    'actions': list(table.names),
    'tau': tau,
    'reference': np.exp(game.log_reference).tolist(),
    'payoff': payoffs.tolist(),
    'maximal_lottery': lottery.tolist(),
    'maximal_lottery_is_unique': list(map(exact.is_only_equilibrium, payoffs, lottery)),
    'choice': [winners(table.names, payoff) for payoff in payoffs],
  }
  if tau > 0:
    found = jax.jit(jax.vmap(partial(exact.equilibrium, tolerance=TOLERANCE)))(game)
    nash = found.log_pi
    sigma = float(jax.vmap(spectrum.sigma)(game, nash).max())
    facts['equilibrium'] = np.exp(nash).tolist()
    facts['equilibrium_gap'] = (2 * found.exploitability).tolist()
    facts['newton_steps'] = found.steps.tolist()
    facts['sigma'] = sigma
    facts['stable_steps'] = spectrum.allowed(sigma, tau)._asdict()
    if all(map(choice.has_bradley_terry_fit, payoffs)):
      compare = jax.jit(jax.vmap(rlhf.compare))
      facts['rlhf'] = {
        name: against_rlhf(compare(game, sampling))
        for name, sampling in experiment.samplings.items()
      }
    else:
      facts['notes'].append('No finite Bradley-Terry reward fits best, so RLHF is left out.')
  return Target(nash, jnp.log(lottery)), facts


def winners(names: tuple[str, ...], payoff: np.ndarray) -> dict:
  """What rules of social choice make of one payoff matrix."""
  condorcet, even = choice.condorcet_winner(payoff), choice.tie(payoff)

  def best(scores):
    return [name for name, score in zip(names, scores, strict=True) if score >= max(scores) - even]

  defeats = choice.worst_defeats(payoff)
  return {
    'condorcet': None if condorcet is None else names[condorcet],
    'undefeated': [name for name, worst in zip(names, defeats, strict=True) if worst <= even],
    'borda': best(choice.borda_scores(payoff)),
    'copeland': best(choice.copeland_scores(payoff)),
    'minimax': best(-defeats),
    'three_cycles': choice.three_cycles(payoff),
    'transitive_share': choice.hodge(payoff).share,
    'turns': [turn.strength for turn in choice.turns(payoff)],
  }


def against_rlhf(outcome: rlhf.Outcome) -> dict:
  """The comparison with RLHF as plain numbers, a row a prompt."""
  return {
    'reward': outcome.reward.tolist(),
    'rlhf': np.exp(outcome.log_rlhf).tolist(),
    'nash_beats_rlhf': outcome.nash_beats_rlhf.tolist(),
    'rlhf_exploitability': outcome.rlhf_exploitability.tolist(),
    'nash_exploitability': outcome.nash_exploitability.tolist(),
  }


def follow(
  row: SolverRun, game: Game, start: Float[Array, 'X K'], target: Target
) -> tuple[dict, Float[np.ndarray, 'X R K']]:
  """One solver's course, as means over the prompts, and its first iterates as probabilities."""
  spread, drawn = when(row.updates), np.arange(min(row.updates, DRAWN) + 1)
  updates = np.union1d(spread, drawn).astype(np.int32)
  began = time.perf_counter()
  program = jax.jit(jax.vmap(lambda game, start: solve(row.solver, game, updates, start)))
  program = program.lower(game, start).compile()
  compiled = time.perf_counter()
  path = jax.block_until_ready(program(game, start))
  ended = time.perf_counter()
  kept = np.isin(updates, spread)
  measured = measure(game, path.last[:, kept], path.average[:, kept], target)
  facts = {
    'updates': row.updates,
    'seconds': ended - compiled,
    'compile_seconds': compiled - began,
    'at': spread.tolist(),
    **{name: np.asarray(values).mean(axis=0).tolist() for name, values in measured.items()},
    'last': np.exp(path.last[:, -1]).tolist(),
    'average': np.exp(path.average[:, -1]).tolist(),
  }
  return facts, np.exp(path.last[:, : len(drawn)])


@jax.jit
@jax.vmap
def measure(
  game: Game, last: Float[Array, 'R K'], average: Float[Array, 'R K'], target: Target
) -> dict[str, Float[Array, 'R']]:
  """Everything measured along a course on one prompt.

  Gaps are duality gaps in win probability, those with `tau` with the price; `kl` is KL(equilibrium
  at tau, iterate) in nats, `distance` the total variation between iterate and maximal lottery.
  """
  free = game._replace(tau=jnp.zeros_like(game.tau))
  measured = {
    'gap': jax.vmap(partial(duality_gap, free))(last),
    'average_gap': jax.vmap(partial(duality_gap, free))(average),
    'distance': abs(jnp.exp(last) - jnp.exp(target.lottery)).sum(axis=1) / 2,
  }
  if target.nash is not None:
    measured['gap_tau'] = jax.vmap(partial(duality_gap, game))(last)
    measured['average_gap_tau'] = jax.vmap(partial(duality_gap, game))(average)
    measured['kl'] = jax.vmap(partial(kl, target.nash))(last)
  return measured


def draw(
  experiment: TabularExperiment, results: Mapping, paths: Mapping[str, np.ndarray], target: Target
) -> dict[str, bytes]:
  """The figures of a run, by the names of their files."""
  names, solvers = experiment.table.names, results['solvers']

  def curves(name):
    return {label: (np.array(row['at']), np.array(row[name])) for label, row in solvers.items()}

  figures = {}
  tau = results['tau']
  if target.nash is not None:
    figures['gap_tau'] = game_plots.convergence(
      curves('gap_tau'), f'To the equilibrium at τ = {tau:g}', 'duality gap, last iterate'
    )
    figures['gap_tau_average'] = game_plots.convergence(
      curves('average_gap_tau'), f'The average, to τ = {tau:g}', 'duality gap, average iterate'
    )
  figures['gap'] = game_plots.convergence(
    curves('gap'), 'To the equilibrium without a price', 'duality gap, last iterate'
  )
  figures['gap_average'] = game_plots.convergence(
    curves('average_gap'), 'The average, without a price', 'duality gap, average iterate'
  )
  marks = {'reference': np.exp(experiment.game.log_reference[0])}
  if target.nash is not None:
    marks['Nash at τ'] = np.exp(target.nash[0])
  marks['Nash'] = np.exp(target.lottery[0])
  if len(names) == 3:
    first = {label: path[0] for label, path in paths.items()}
    title = f'The iterates of the first {DRAWN:,} updates'
    figures['simplex'] = game_plots.simplex(first, names, marks, title)
  figures['preferences'] = game_plots.matrix(
    np.asarray(experiment.game.payoff[0]), names, 'Win rate of row over column'
  )
  for sampling, outcome in results.get('rlhf', {}).items():
    marks[f'RLHF, pairs from {sampling}'] = np.array(outcome['rlhf'][0])
  figures['policies'] = game_plots.bars(marks, names, 'Policies')
  return {name: game_plots.as_png(figure) for name, figure in figures.items()}


def announce(results: Mapping) -> None:
  """Prints what was found."""
  names, tau = results['actions'], results['tau']
  for note in results['notes']:
    print(note)
  shown = sorted(range(len(names)), key=lambda k: -results['maximal_lottery'][0][k])[:SHOWN]
  shown.sort()
  policies = {'reference': results['reference'][0], 'Nash': results['maximal_lottery'][0]}
  if tau > 0:
    policies[f'Nash at tau = {tau:g}'] = results['equilibrium'][0]
    for sampling, outcome in results.get('rlhf', {}).items():
      policies[f'RLHF, pairs from {sampling}'] = outcome['rlhf'][0]
  cells = [[f'{policy[k]:.4f}' for k in shown] for policy in policies.values()]
  prompts = len(results['reference'])
  more = f', {len(shown)} of {len(names)} actions' if len(shown) < len(names) else ''
  first = f' on the first of {prompts} prompts' if prompts > 1 else ''
  title = f'\n{results["game"]}{first}{more}:'
  print(tables.as_text(title, list(policies), [names[k] for k in shown], cells))
  say = results['choice'][0]
  print(
    f'\nCondorcet winner {say["condorcet"] or "none"}, Borda winner {" = ".join(say["borda"])}, '
    f'{say["three_cycles"]} three-cycles, {say["transitive_share"]:.0%} transitive.'
  )
  if tau > 0:
    print(
      f'Equilibrium at tau = {tau:g} to a duality gap of {max(results["equilibrium_gap"]):.1g} in '
      f'{max(results["newton_steps"])} Newton steps; sigma = {results["sigma"]:.3g}, so that '
      f'self-play is stable for eta < {results["stable_steps"]["self_play"]:.3g}.'
    )
  columns = {'gap': 'gap last', 'average_gap': 'average', 'distance': 'distance to Nash'}
  if tau > 0:
    at_tau = {'gap_tau': 'gap_tau last', 'average_gap_tau': 'average', 'kl': 'KL to Nash_tau'}
    columns = at_tau | columns
  rows = results['solvers']
  cells = [
    [f'{row[field][-1]:.1e}' for field in columns] + [str(row['updates']), f'{row["seconds"]:.3f}']
    for row in rows.values()
  ]
  means = f', means over {prompts} prompts' if prompts > 1 else ''
  title = f'\nDuality gaps in win probability, KL in nats, after all updates{means}:'
  print(tables.as_text(title, list(rows), [*columns.values(), 'updates', 'seconds'], cells))
  if not all(results['maximal_lottery_is_unique']):
    print('Without a price there are several equilibria; distances to Nash are to one of them.')
