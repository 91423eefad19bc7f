"""The config of the experiments that solve a game over a few actions."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nlhf_jax.errors import UserError
from nlhf_jax.experiments import sections
from nlhf_jax.experiments.game_specs import SolverRun, TabularExperiment
from nlhf_jax.experiments.memory_limits import check_table, count_sequences
from nlhf_jax.experiments.sections import Section, call_by_name, factories, parse_numbers
from nlhf_jax.games import exact, files, matrices, solvers
from nlhf_jax.games.game import make_game
from nlhf_jax.games.solvers import Solver
from nlhf_jax.games.tables import Table

GAMES = factories(matrices, np.ndarray)
SOLVERS = factories(solvers, Solver) | factories(exact, Solver)

# Solvers of regularised games: at tau = 0 they are undefined, or equal to another solver.
REGULARISED = (
  *('nash_md', 'nash_md_decreasing', 'mmd', 'mpo', 'mmd_ema', 'inpo', 'comal'),
  *('newton', 'anderson'),
)


MOST_PLACEMENTS = 10_000_000  # of soldiers on fields, which are listed one by one


def make_experiment(config: ConfigDict, name: str, folder: Path | None = None) -> TabularExperiment:
  """Makes the experiment of a config; in double precision, if JAX has it enabled.

  It has no stages to keep in `folder`.

  Raises:
    UserError: if a setting or the game cannot be used.
  """
  del folder
  sections.check(tabular_sections(config))
  table = make_table(config.game)
  payoff = np.reshape(table.payoff, (-1, *table.payoff.shape[-2:]))
  actions = payoff.shape[-1]
  game = make_game(payoff, parse_policy(config.reference, actions, 'config.reference'), config.tau)
  start = game.log_reference
  if config.start != 'reference':
    chosen = np.log(parse_policy(config.start, actions, 'config.start'))
    start = jnp.broadcast_to(jnp.asarray(chosen), start.shape)
  samplings = {
    text: jnp.broadcast_to(parse_policy(text, actions, 'config.sampling'), start.shape)
    for text in ('uniform', config.sampling)
  }
  runs = make_runs(config)
  for label, run in runs.items():
    try:
      run.solver.init(jax.tree.map(lambda leaf: leaf[0], game), start[0])
    except UserError as error:
      raise UserError(f'config.solvers.{label}: {error}') from None
  game_name = Path(config.game.path).stem if config.game.name == 'file' else config.game.name
  return TabularExperiment(name, game_name, table, game, start, samplings, runs)


def tabular_sections(config: ConfigDict) -> Iterator[Section]:
  """The sections of a config of this kind, with the declarations of their ranges."""
  yield Section(make_game, config, 'config')
  game = files.read if config.game.name == 'file' else GAMES.get(config.game.name)
  if game:
    yield Section(game, config.game, 'config.game')
  for label, section in config.solvers.items():
    field = f'config.solvers.{label}'
    yield Section(SolverRun, section, field)
    if section.solver in SOLVERS:
      yield Section(SOLVERS[section.solver], section.arguments, f'{field}.arguments')


def make_table(settings: ConfigDict) -> Table:
  """The game of the section `game`, by its name or from a file."""
  arguments = settings.to_dict()
  name = arguments.pop('name')
  if name == 'file':
    if not arguments['path']:
      raise UserError('config.game.path is empty; pass --config.game.path=MATRIX.csv.')
    return files.read(**arguments)
  if 'rewards' in arguments:
    arguments['rewards'] = parse_numbers(arguments['rewards'], 'config.game.rewards')
  check_size(arguments)
  payoff = call_by_name(GAMES, name, arguments, 'config.game.name', 'config.game')
  return Table(tuple(str(action + 1) for action in range(payoff.shape[-1])), payoff, ())


def check_size(arguments: Mapping[str, Any]) -> None:
  """Refuses arguments of a game that has too many actions for a table of payoffs.

  Raises:
    UserError: names the arguments.
  """
  fields = f'config.game: {", ".join(arguments)}'
  actions = arguments.get('actions', 1)
  copies = arguments.get('raters', 1) * arguments.get('count', 1)
  if 'fingers' in arguments:
    actions = arguments['fingers'] ** 2
  if 'soldiers' in arguments:
    soldiers, places = arguments['soldiers'], arguments.get('fields', 1)
    tried = count_sequences(soldiers + 1, places, MOST_PLACEMENTS)
    if min(soldiers, places) >= 0 and tried > MOST_PLACEMENTS:
      raise UserError(f'{fields} make more than {MOST_PLACEMENTS:,} placements; lower them.')
  check_table(actions, copies, fields)


def make_runs(config: ConfigDict) -> dict[str, SolverRun]:
  """The solvers chosen by `config.only`, all by default."""
  chosen = [label.strip() for label in config.only.split(',') if label.strip()]
  for label in chosen:
    if label not in config.solvers:
      raise UserError(
        f"config.only: there is no solver '{label}'; choose from {', '.join(config.solvers)}."
      )
  runs = {}
  for label in chosen or config.solvers:
    section, field = config.solvers[label], f'config.solvers.{label}'
    arguments = dict(section.arguments)
    solver = call_by_name(
      SOLVERS, section.solver, arguments, f'{field}.solver', f'{field}.arguments'
    )
    if config.tau == 0 and section.solver in REGULARISED:
      if label in chosen:
        raise UserError(f'{field} needs config.tau above 0; at 0 use proximal_point or mwu.')
      continue
    runs[label] = SolverRun(solver, section.updates)
  return runs


def parse_policy(text: str, actions: int, field: str) -> np.ndarray:
  """Probabilities from text such as '0.5, 0.3, 0.2', [K]."""
  if text == 'uniform':
    return np.full(actions, 1 / actions)
  pi = np.array(parse_numbers(text, field))
  if len(pi) != actions or not (pi > 0).all() or abs(pi.sum() - 1) > 1e-6:
    raise UserError(
      f"{field}='{text}' must be {actions} probabilities above 0 that sum to 1, one per action, or "
      "'uniform'."
    )
  return pi / pi.sum()
