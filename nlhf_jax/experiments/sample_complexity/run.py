"""Measures how fast games are learned from votes, with confidence intervals over seeds."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from nlhf_jax.experiments.game_specs import Measurement, SampleComplexityExperiment
from nlhf_jax.progress import progress
from nlhf_jax.reporting import formatting, game_plots, sample_complexity_page
from nlhf_jax.sample_complexity import protocols, rates, votes
from nlhf_jax.sample_complexity.setting import equilibrium
from nlhf_jax.storage import json_lines

SOLVED = 1e-9  # exploitability, in units of the payoff, at which an inner game counts as solved


def run(experiment: SampleComplexityExperiment, workdir: Path) -> dict:
  """Runs the four measurements, and writes results, plots and the report to `workdir`."""
  for old in (
    'results.json',
    'report.html',
    *(f'{figure}.png' for figure in sample_complexity_page.CAPTIONS),
  ):
    (workdir / old).unlink(missing_ok=True)
  results = {
    'name': experiment.name,
    'payoff': experiment.payoff,
    'seeds': experiment.seeds,
    'worlds': {
      field: getattr(experiment, field).name for field in ('rates', 'offline', 'online', 'rewards')
    },
  }
  measurements = {
    'rates': measure_rates,
    'offline': measure_offline,
    'online': measure_online,
    'rewards': measure_rewards,
  }
  keys = jax.random.split(jax.random.key(experiment.seed), experiment.seeds)
  with progress(len(measurements), 'measurements', 'measurement') as bar:
    for field, measure in measurements.items():
      bar.set_label(field)
      began = time.perf_counter()
      results[field] = measure(experiment, getattr(experiment, field), keys)
      results[field]['seconds'] = time.perf_counter() - began
      bar.update()
    bar.set_label('measurements')
  json_lines.write_json(workdir / 'results.json', results)
  figures = draw_vote_figures(results)
  game_plots.write_png(workdir, figures)
  sample_complexity_page.write(workdir / 'report.html', results, figures)
  print_vote_results(results)
  return results


def mean_curve(at: np.ndarray, gaps: jax.Array) -> dict:
  """The mean over seeds of gaps [S, R], and half of its 95 % interval, as plain numbers."""
  mean, half = rates.confidence_interval(gaps)
  return {'at': at.tolist(), 'mean': mean.tolist(), 'half': half.tolist()}


def measure_rates(
  experiment: SampleComplexityExperiment, part: Measurement, keys: jax.Array
) -> dict:
  """Gaps of the plug-in equilibrium for one true preference, by tau and number of votes."""
  preference = part.world.draw(jax.random.key(experiment.seed))
  program = jax.jit(
    lambda setting, keys: jax.vmap(
      partial(protocols.plug_in, part.world, experiment.link, setting, preference, part.votes)
    )(keys)
  )
  curves = {}
  for tau, setting in part.settings.items():
    gaps, identity = program(setting, keys)
    row = mean_curve(part.votes, gaps)
    row['slopes'] = rates.log_log_slopes(part.votes, row['mean']).tolist()
    row['identity_error'] = float(abs(gaps - identity).max())
    if part.name == 'anything':
      nash = equilibrium(setting, experiment.link.payoff(preference))
      design = votes.uniform_design(setting)
      row['predicted'] = [
        float(rates.expected_gap(setting, experiment.link, preference, n * design, nash))
        for n in part.votes
      ]
    curves[f'τ = {tau:g}'] = row
  return {'curves': curves}


def measure_offline(
  experiment: SampleComplexityExperiment, part: Measurement, keys: jax.Array
) -> dict:
  """Gaps of plug-in and two pessimistic learners, by tau and coverage of the pairs."""

  @jax.jit
  def program(setting, others, keys):
    learn = partial(protocols.learn_offline, part.world, experiment.link, setting, others)
    return jax.vmap(lambda key: learn(samples=part.votes, key=key, **part.arguments))(keys)

  panels, unsolved = {}, {}
  for others in part.others:
    for tau, setting in part.settings.items():
      found = program(setting, jnp.asarray(others), keys)
      gaps, left = (
        {name.replace('_', ' '): values for name, values in of_each._asdict().items()}
        for of_each in found
      )
      title = f'τ = {tau:g}, other pairs weigh {others:g}'
      panels[title] = {name: mean_curve(part.votes, values) for name, values in gaps.items()}
      unsolved |= find_unsolved(title, part.votes, left)
  return {'panels': panels, 'unsolved': unsolved}


def find_unsolved(title: str, at: np.ndarray, left: Mapping[str, jax.Array]) -> dict[str, dict]:
  """Title -> solver -> the gap that remains in its own game at each of `at`.

  The gap is the maximum of `left` [S, R] over seeds. Only solvers with a gap that is above `SOLVED`
  or NaN are listed.
  """
  most = {name: np.asarray(values).max(axis=0) for name, values in left.items()}
  rows = {
    name: {'at': at.tolist(), 'left': values.tolist()}
    for name, values in most.items()
    if not (values <= SOLVED).all()
  }
  return {title: rows} if rows else {}


def measure_online(
  experiment: SampleComplexityExperiment, part: Measurement, keys: jax.Array
) -> dict:
  """Gaps of the main agent after each round, by tau and enhancer."""

  @jax.jit
  def program(setting, strategy, keys):
    learn = partial(protocols.learn_online, part.world, experiment.link, setting, strategy)
    courses = jax.vmap(lambda key: learn(key=key, **part.arguments))(keys)
    return courses.gap, courses.left

  rounds = np.arange(part.arguments['rounds'])
  votes_so_far = part.arguments['batch'] * rounds
  panels, unsolved = {}, {}
  for tau, setting in part.settings.items():
    title, panel, left = f'τ = {tau:g}', {}, {}
    for number, name in enumerate(protocols.STRATEGIES):
      gaps, left[name] = program(setting, number, keys)
      panel[name] = mean_curve(votes_so_far, gaps)
    panels[title] = panel
    unsolved |= find_unsolved(title, votes_so_far, left)
  return {'panels': panels, 'unsolved': unsolved}


def measure_rewards(
  experiment: SampleComplexityExperiment, part: Measurement, keys: jax.Array
) -> dict:
  """Under Bradley-Terry, the shortfall of the regularised reward, by tau and learner."""
  program = jax.jit(
    lambda setting, keys: jax.vmap(
      partial(protocols.learn_rewards, part.world, setting, part.votes)
    )(keys)
  )
  curves = {}
  for tau, setting in part.settings.items():
    for name, gaps in program(setting, keys)._asdict().items():
      row = mean_curve(part.votes, gaps)
      row['slopes'] = rates.log_log_slopes(part.votes, row['mean']).tolist()
      curves[f'{name}, τ = {tau:g}'] = row
  return {'curves': curves}


def draw_vote_figures(results: Mapping) -> dict[str, Figure]:
  """Name -> figure."""
  unit = 'win probability' if results['payoff'] == 'probability' else 'log-odds'
  figures = {}

  def add(name, rows, title, label):
    curves = {label: (row['at'], row['mean']) for label, row in rows.items()}
    bands = {
      label: (np.subtract(row['mean'], row['half']), np.add(row['mean'], row['half']))
      for label, row in rows.items()
      if 'half' in row
    }
    lowest = min((value for row in rows.values() for value in row['mean'] if value > 0), default=1)
    theory = {
      label: (row['at'], row['predicted']) for label, row in rows.items() if 'predicted' in row
    }
    figures[name] = game_plots.convergence(
      curves, title, label, 'votes', lowest / 10, bands, theory
    )

  add('rates', results['rates']['curves'], 'The equilibrium of the estimate', f'gap, {unit}')
  for field in ('offline', 'online'):
    for number, (title, panel) in enumerate(results[field]['panels'].items(), 1):
      add(f'{field}_{number}', panel, f'{field.capitalize()}, {title}', f'gap, {unit}')
  title = 'Under Bradley-Terry: shortfall of the reward'
  add('rewards', results['rewards']['curves'], title, 'reward shortfall, log-odds')
  return figures


def print_vote_results(results: Mapping) -> None:
  """Prints the results."""
  for title, rows in sample_complexity_page.result_tables(results):
    at = next(iter(rows.values()))['at']
    shown = sample_complexity_page.printed_points(at)
    cells = [sample_complexity_page.format_cells(row, shown) for row in rows.values()]
    print(formatting.format_text(f'\n{title}', list(rows), [f'{at[i]:g}' for i in shown], cells))
  print(
    f'\nMeans over {results["seeds"]} seeds. {sample_complexity_page.describe_solvers(results)}'
  )
