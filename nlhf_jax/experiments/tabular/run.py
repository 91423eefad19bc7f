"""Runs solvers on a game over a few actions, and measures their distance to the equilibria."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from nlhf_jax.experiments.game_specs import SolverRun, TabularExperiment
from nlhf_jax.games import choice, exact, rlhf, spectrum
from nlhf_jax.games.game import Game, duality_gap, kl
from nlhf_jax.games.solve import log_spaced_updates, solve
from nlhf_jax.progress import progress
from nlhf_jax.reporting import formatting, game_page, game_plots
from nlhf_jax.storage import json_lines

SHOWN = 12  # actions in printed tables
DRAWN = 1500  # updates in the plot of a trajectory
TOLERANCE = 1e-22  # exploitability of the exact equilibria


class Equilibria(NamedTuple):
  """The exact equilibria, as log-probabilities, one per prompt."""

  nash: Float[Array, 'X K'] | None  # of the regularised game; None if tau is 0
  lottery: Float[Array, 'X K']  # of the unregularised game


def run(experiment: TabularExperiment, workdir: Path) -> dict:
  """Solves the game with every solver, and writes results, plots and the report to `workdir`."""
  game = experiment.game
  for old in ('results.json', 'report.html', *(f'{figure}.png' for figure in game_page.CAPTIONS)):
    (workdir / old).unlink(missing_ok=True)  # these may be of another game
  target, facts = analyse_game(experiment)
  outcomes, paths = {}, {}
  with progress(len(experiment.runs), 'solvers', 'solver') as bar:
    for label, run in experiment.runs.items():
      bar.set_label(label)
      outcomes[label], paths[label] = run_solver(run, game, experiment.start, target)
      bar.update()
    bar.set_label('solvers')
  results = {'name': experiment.name, **facts, 'solvers': outcomes}
  figures = draw_game_figures(experiment, results, paths, target)
  game_plots.write_png(workdir, figures)
  game_page.write(workdir / 'report.html', results, figures)
  json_lines.write_json(workdir / 'results.json', results)
  print_game_results(results)
  return results


def analyse_game(experiment: TabularExperiment) -> tuple[Equilibria, dict]:
  """The exact equilibria of the game, and the facts of the report that need no solver."""
  table, game = experiment.table, experiment.game
  payoffs, tau = np.asarray(game.payoff), float(game.tau[0])
  met = np.broadcast_to(True if table.met is None else table.met, payoffs.shape)
  lottery = np.array([exact.maximal_lottery(payoff) for payoff in payoffs])
  groups = [
    [[table.names[action] for action in group] for group in choice.compared_groups(one)]
    for one in met
  ]
  nash = None
  facts = {
    'game': experiment.game_name,
    'notes': list(table.notes),
    'actions': list(table.names),
    'tau': tau,
    'reference': np.exp(game.log_reference).tolist(),
    'payoff': payoffs.tolist(),
    'maximal_lottery': lottery.tolist(),
    'maximal_lottery_is_unique': list(map(exact.is_unique_equilibrium, payoffs, lottery)),
    'groups': groups,
    'choice': [
      social_choice(table.names, payoff, len(group) == 1)
      for payoff, group in zip(payoffs, groups, strict=True)
    ],
  }
  if tau > 0:
    found = jax.jit(jax.vmap(partial(exact.equilibrium, tolerance=TOLERANCE)))(game)
    nash = found.log_pi
    sigma = float(jax.vmap(spectrum.sigma)(game, nash).max())
    facts['equilibrium'] = np.exp(nash).tolist()
    facts['equilibrium_gap'] = (2 * found.exploitability).tolist()
    facts['newton_steps'] = found.steps.tolist()
    facts['sigma'] = sigma
    facts['stable_steps'] = spectrum.stable_steps(sigma, tau)._asdict()
    if all(map(choice.has_bradley_terry_fit, payoffs, met)):
      compare = jax.jit(jax.vmap(rlhf.compare_with_nash))
      facts['rlhf'] = {
        name: rlhf_facts(compare(game, sampling)) for name, sampling in experiment.samplings.items()
      }
    else:
      facts['notes'].append(
        'The best Bradley-Terry fit has no finite rewards, so RLHF is left out.'
      )
  return Equilibria(nash, jnp.log(lottery)), facts


def social_choice(names: tuple[str, ...], payoff: np.ndarray, connected: bool = True) -> dict:
  """The winners under rules of social choice, cycles and disc games of one payoff matrix.

  Scores of actions that no comparisons connect mean nothing beside each other: where the game is
  not `connected`, there are no winners by scores.
  """
  condorcet, even = choice.condorcet_winner(payoff), choice.tie_margin(payoff)

  def best(scores):
    least = max(scores) - even if connected else np.inf
    return [name for name, score in zip(names, scores, strict=True) if score >= least]

  defeats = choice.worst_defeats(payoff)
  return {
    'condorcet': None if condorcet is None else names[condorcet],
    'undefeated': [
      name for name, worst in zip(names, defeats, strict=True) if connected and worst <= even
    ],
    'borda': best(choice.borda_scores(payoff)),
    'copeland': best(choice.copeland_scores(payoff)),
    'minimax': best(-defeats),
    'three_cycles': choice.three_cycles(payoff),
    'transitive_share': choice.hodge(payoff).share,
    'turns': [turn.strength for turn in choice.disc_games(payoff)],
  }


def rlhf_facts(outcome: rlhf.RlhfComparison) -> dict:
  """The comparison with RLHF as plain numbers, one row per prompt."""
  return {
    'reward': outcome.reward.tolist(),
    'rlhf': np.exp(outcome.log_rlhf).tolist(),
    'nash_beats_rlhf': outcome.nash_beats_rlhf.tolist(),
    'rlhf_exploitability': outcome.rlhf_exploitability.tolist(),
    'nash_exploitability': outcome.nash_exploitability.tolist(),
  }


def run_solver(
  run: SolverRun, game: Game, start: Float[Array, 'X K'], target: Equilibria
) -> tuple[dict, Float[np.ndarray, 'X R K']]:
  """Runs one solver; returns its metrics, means over prompts, and its first iterates, in [0, 1]."""
  spread, drawn = log_spaced_updates(run.updates), np.arange(min(run.updates, DRAWN) + 1)
  updates = np.union1d(spread, drawn).astype(np.int32)
  began = time.perf_counter()
  program = jax.jit(jax.vmap(lambda game, start: solve(run.solver, game, updates, start)))
  program = program.lower(game, start).compile()
  compiled = time.perf_counter()
  path = jax.block_until_ready(program(game, start))
  ended = time.perf_counter()
  kept = np.isin(updates, spread)
  measured = measure_iterates(game, path.last[:, kept], path.average[:, kept], target)
  facts = {
    'updates': run.updates,
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
def measure_iterates(
  game: Game, last: Float[Array, 'R K'], average: Float[Array, 'R K'], target: Equilibria
) -> dict[str, Float[Array, 'R']]:
  """The metrics of the iterates on one prompt.

  Gaps are duality gaps in win probability, of the regularised game if `tau` is in the name. `kl` is
  KL(regularised equilibrium, iterate) in nats; `distance` is the total variation between iterate
  and maximal lottery.
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


def draw_game_figures(
  experiment: TabularExperiment,
  results: Mapping,
  paths: Mapping[str, np.ndarray],
  target: Equilibria,
) -> dict[str, Figure]:
  """Name -> figure."""
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
    curves('gap'), 'To the equilibrium without regularisation', 'duality gap, last iterate'
  )
  figures['gap_average'] = game_plots.convergence(
    curves('average_gap'), 'The average, without regularisation', 'duality gap, average iterate'
  )
  marks = {'reference': np.exp(experiment.game.log_reference[0])}
  if target.nash is not None:
    marks['Nash at τ'] = np.exp(target.nash[0])
  marks['Nash'] = np.exp(target.lottery[0])
  if len(names) == 3:
    first = {label: path[0] for label, path in paths.items()}
    title = f'The iterates of the first {DRAWN:,} updates'
    figures['simplex'] = game_plots.simplex(first, names, marks, title)
  figures['preferences'] = game_plots.payoff_heatmap(
    np.asarray(experiment.game.payoff[0]), names, 'Win rate of row over column'
  )
  for sampling, outcome in results.get('rlhf', {}).items():
    marks[f'RLHF, pairs from {sampling}'] = np.array(outcome['rlhf'][0])
  figures['policies'] = game_plots.policy_bars(marks, names, 'Policies')
  return figures


def print_game_results(results: Mapping) -> None:
  """Prints the results."""
  names, tau = results['actions'], results['tau']
  for note in results['notes']:
    print(note)
  if len(results['groups'][0]) > 1:
    print(f'\n{game_page.describe_groups(results["groups"][0])}')
  shown = sorted(range(len(names)), key=lambda k: -results['maximal_lottery'][0][k])[:SHOWN]
  shown.sort()
  several = '' if results['maximal_lottery_is_unique'][0] else ' (not unique)'
  policies = {'reference': results['reference'][0]}
  policies[f'Nash{several}'] = results['maximal_lottery'][0]
  if tau > 0:
    policies[f'Nash at tau = {tau:g}'] = results['equilibrium'][0]
    for sampling, outcome in results.get('rlhf', {}).items():
      policies[f'RLHF, pairs from {sampling}'] = outcome['rlhf'][0]
  cells = [[f'{policy[k]:.4f}' for k in shown] for policy in policies.values()]
  prompts = len(results['reference'])
  more = f', {len(shown)} of {len(names)} actions' if len(shown) < len(names) else ''
  first = f' on the first of {prompts} prompts' if prompts > 1 else ''
  title = f'\n{results["game"]}{first}{more}:'
  print(formatting.format_text(title, list(policies), [names[k] for k in shown], cells))
  facts = results['choice'][0]
  print(
    f'\nCondorcet winner {facts["condorcet"] or "none"}, '
    f'Borda winner {" = ".join(facts["borda"]) or "none"}, {facts["three_cycles"]} three-cycles, '
    f'{facts["transitive_share"]:.0%} transitive.'
  )
  if tau > 0:
    print(
      f'Equilibrium at tau = {tau:g} to a duality gap of {max(results["equilibrium_gap"]):.1g} in '
      f'{max(results["newton_steps"])} Newton steps; sigma = {results["sigma"]:.3g}, so '
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
  print(formatting.format_text(title, list(rows), [*columns.values(), 'updates', 'seconds'], cells))
  if not all(results['maximal_lottery_is_unique']):
    print(
      'Without regularisation the equilibrium is not unique: Nash, to which distances are '
      'measured, is the one of the largest entropy.'
    )
