"""Learning games from votes: what is measured, with intervals over seeds, and its report."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from nlhf_jax.experiments.sample_complexity.config import make_experiment
from nlhf_jax.experiments.specs import Measurement, SampleComplexityExperiment
from nlhf_jax.reporting import game_plots, sample_complexity_page, tables
from nlhf_jax.sample_complexity import protocols, rates, votes
from nlhf_jax.sample_complexity.setting import equilibrium
from nlhf_jax.storage import json_lines

SOLVED = 1e-9  # what an inner game may have left to gain, in units of the payoff


def start(config: ConfigDict, name: str, workdir: Path, stages: Path) -> None:
  """Builds the experiment and runs it in its work directory; there are no stages to keep."""
  del stages
  with jax.enable_x64(True):
    experiment = make_experiment(config)
    json_lines.write_json(workdir / 'config.json', config.to_dict())
    run(experiment, name, workdir)


def run(experiment: SampleComplexityExperiment, name: str, workdir: Path) -> dict:
  """Measures all there is to measure, and writes results, plots and the report to `workdir`."""
  for old in (
    'results.json',
    'report.html',
    *(f'{figure}.png' for figure in sample_complexity_page.CAPTIONS),
  ):
    (workdir / old).unlink(missing_ok=True)
  results = {
    'name': name,
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
  with tqdm(measurements.items(), unit='measurement') as bar:
    for field, measure in bar:
      bar.set_description(field)
      began = time.perf_counter()
      results[field] = measure(experiment, getattr(experiment, field), keys)
      results[field]['seconds'] = time.perf_counter() - began
  json_lines.write_json(workdir / 'results.json', results)
  figures = draw(results)
  for title, figure in figures.items():
    (workdir / f'{title}.png').write_bytes(figure)
  sample_complexity_page.write(workdir / 'report.html', results, figures)
  announce(results)
  return results


def curve(at: np.ndarray, gaps: jax.Array) -> dict:
  """Mean over seeds [S, R] and half of its 95 % interval, in plain numbers."""
  mean, half = rates.interval(gaps)
  return {'at': at.tolist(), 'mean': mean.tolist(), 'half': half.tolist()}


def measure_rates(
  experiment: SampleComplexityExperiment, part: Measurement, keys: jax.Array
) -> dict:
  """The plug-in equilibrium on one truth, by price and number of votes."""
  preference = part.world.draw(jax.random.key(experiment.seed))
  program = jax.jit(
    lambda setting, keys: jax.vmap(
      partial(protocols.plug_in, part.world, experiment.link, setting, preference, part.votes)
    )(keys)
  )
  curves = {}
  for tau, setting in part.settings.items():
    gaps, identity = program(setting, keys)
    row = curve(part.votes, gaps)
    row['slopes'] = rates.slopes(part.votes, row['mean']).tolist()
    row['identity_error'] = float(abs(gaps - identity).max())
    if part.name == 'anything':
      nash = equilibrium(setting, experiment.link.payoff(preference))
      design = votes.evenly(setting)
      row['predicted'] = [
        float(rates.expected_gap(setting, experiment.link, preference, n * design, nash))
        for n in part.votes
      ]
    curves[f'τ = {tau:g}'] = row
  return {'curves': curves}


def measure_offline(
  experiment: SampleComplexityExperiment, part: Measurement, keys: jax.Array
) -> dict:
  """Plug-in against two pessimists, by price and by how much of the pairs is covered."""

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
      panels[title] = {name: curve(part.votes, values) for name, values in gaps.items()}
      unsolved |= not_solved(title, part.votes, left)
  return {'panels': panels, 'unsolved': unsolved}


def not_solved(title: str, at: np.ndarray, left: Mapping[str, jax.Array]) -> dict[str, dict]:
  """Title -> solver -> what it had left of its own game, by `at`, the most over seeds [S, R].

  Only of solvers, and for a title with one, that have more left than `SOLVED` (or NaN).
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
  """Every enhancer, by price: the main agent's gap after each round."""

  @jax.jit
  def program(setting, strategy, keys):
    learn = partial(protocols.learn_online, part.world, experiment.link, setting, strategy)
    courses = jax.vmap(lambda key: learn(key=key, **part.arguments))(keys)
    return courses.gap, courses.left

  rounds = np.arange(part.arguments['rounds'])
  asked = part.arguments['batch'] * rounds
  panels, unsolved = {}, {}
  for tau, setting in part.settings.items():
    title, panel, left = f'τ = {tau:g}', {}, {}
    for number, name in enumerate(protocols.STRATEGIES):
      gaps, left[name] = program(setting, number, keys)
      panel[name] = curve(asked, gaps)
    panels[title] = panel
    unsolved |= not_solved(title, asked, left)
  return {'panels': panels, 'unsolved': unsolved}


def measure_rewards(
  experiment: SampleComplexityExperiment, part: Measurement, keys: jax.Array
) -> dict:
  """Under Bradley-Terry, what is missing to the best regularised reward."""
  program = jax.jit(
    lambda setting, keys: jax.vmap(
      partial(protocols.learn_rewards, part.world, setting, part.votes)
    )(keys)
  )
  curves = {}
  for tau, setting in part.settings.items():
    for name, gaps in program(setting, keys)._asdict().items():
      row = curve(part.votes, gaps)
      row['slopes'] = rates.slopes(part.votes, row['mean']).tolist()
      curves[f'{name}, τ = {tau:g}'] = row
  return {'curves': curves}


def draw(results: Mapping) -> dict[str, bytes]:
  """The figures of a run, by the names of their files."""
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
    figures[name] = game_plots.as_png(
      game_plots.convergence(curves, title, label, 'votes', lowest / 10, bands, theory)
    )

  add('rates', results['rates']['curves'], 'The equilibrium of the estimate', f'gap, {unit}')
  for field in ('offline', 'online'):
    for number, (title, panel) in enumerate(results[field]['panels'].items(), 1):
      add(f'{field}_{number}', panel, f'{field.capitalize()}, {title}', f'gap, {unit}')
  title = 'Under Bradley-Terry: to the best reward'
  add('rewards', results['rewards']['curves'], title, 'reward missing, log-odds')
  return figures


def announce(results: Mapping) -> None:
  """Prints what was found."""
  for title, rows in sample_complexity_page.tables(results):
    at = next(iter(rows.values()))['at']
    shown = sample_complexity_page.shown(at)
    cells = [sample_complexity_page.cells(row, shown) for row in rows.values()]
    print(tables.as_text(f'\n{title}', list(rows), [f'{at[i]:g}' for i in shown], cells))
  print(f'\nMeans over {results["seeds"]} seeds. {sample_complexity_page.said_of_solvers(results)}')
