"""The experiments that solve a game over a few actions."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nlhf_jax.errors import UserError
from nlhf_jax.experiments import ranges
from nlhf_jax.experiments.names import functions
from nlhf_jax.experiments.specs import SolverRun, TabularExperiment
from nlhf_jax.games import exact, files, matrices, solvers
from nlhf_jax.games.game import make_game
from nlhf_jax.games.solvers import Solver
from nlhf_jax.games.tables import Table

# Solvers whose point is the price: at tau = 0 they are another one, or none.
PRICED = (
  *('nash_md', 'nash_md_decreasing', 'mmd', 'mpo', 'mmd_ema', 'inpo', 'comal'),
  *('newton', 'anderson'),
)


def make_experiment(config: ConfigDict) -> TabularExperiment:
  """The experiment that a config describes; in double precision, if JAX has it enabled.

  Raises:
    UserError: if a setting or the game cannot be used.
  """
  ranges.check(config)
  table = make_table(config.game)
  payoff = np.reshape(table.payoff, (-1, *table.payoff.shape[-2:]))
  actions = payoff.shape[-1]
  game = make_game(payoff, policy(config.reference, actions, 'config.reference'), config.tau)
  start = game.log_reference
  if config.start != 'reference':
    chosen = np.log(policy(config.start, actions, 'config.start'))
    start = jnp.broadcast_to(jnp.asarray(chosen), start.shape)
  samplings = {
    text: jnp.broadcast_to(policy(text, actions, 'config.sampling'), start.shape)
    for text in ('uniform', config.sampling)
  }
  rows = make_rows(config)
  for label, row in rows.items():
    try:
      row.solver.init(jax.tree.map(lambda leaf: leaf[0], game), start[0])
    except UserError as error:
      raise UserError(f'config.solvers.{label}: {error}') from None
  name = Path(config.game.path).stem if config.game.name == 'file' else config.game.name
  return TabularExperiment(name, table, game, start, samplings, rows)


def make_table(settings: ConfigDict) -> Table:
  """The game, by its name or from a file."""
  arguments = settings.to_dict()
  name = arguments.pop('name')
  if name == 'file':
    if not arguments['path']:
      raise UserError('config.game.path is empty; pass --config.game.path=MATRIX.csv.')
    return files.read(**arguments)
  if 'rewards' in arguments:
    arguments['rewards'] = numbers(arguments['rewards'], 'config.game.rewards')
  payoff = call(functions(matrices, np.ndarray), name, arguments, 'config.game.name', 'config.game')
  return Table(tuple(str(action + 1) for action in range(payoff.shape[-1])), payoff, ())


def make_rows(config: ConfigDict) -> dict[str, SolverRun]:
  """The solvers chosen by `config.only`, all by default."""
  chosen = [label.strip() for label in config.only.split(',') if label.strip()]
  for label in chosen:
    if label not in config.solvers:
      raise UserError(
        f"config.only: there is no solver '{label}'; choose from {', '.join(config.solvers)}."
      )
  known = functions(solvers, Solver) | functions(exact, Solver)
  rows = {}
  for label in chosen or config.solvers:
    row, field = config.solvers[label], f'config.solvers.{label}'
    arguments = dict(row.arguments)
    solver = call(known, row.solver, arguments, f'{field}.solver', f'{field}.arguments')
    if config.tau == 0 and row.solver in PRICED:
      if label in chosen:
        raise UserError(f'{field} needs config.tau above 0; at 0 take proximal_point or mwu.')
      continue
    rows[label] = SolverRun(solver, row.updates)
  return rows


def call(known: Mapping[str, Callable], name: str, arguments: Mapping, field: str, where: str):
  """Calls a function by its name, once it is known to take the arguments.

  Raises:
    UserError: that names the field, if not.
  """
  if name not in known:
    raise UserError(f"{field}: there is no '{name}'; use one of {', '.join(known)}.")
  try:
    inspect.signature(known[name]).bind(**arguments)
  except TypeError as error:
    raise UserError(f"{where}: '{name}' got {list(arguments)}: {error}.") from None
  return known[name](**arguments)


def policy(text: str, actions: int, field: str) -> np.ndarray:
  """Probabilities from text, [K]."""
  if text == 'uniform':
    return np.full(actions, 1 / actions)
  pi = np.array(numbers(text, field))
  if len(pi) != actions or not (pi > 0).all() or abs(pi.sum() - 1) > 1e-6:
    raise UserError(
      f"{field}='{text}' must be {actions} probabilities above 0 that sum to 1, one an action, or "
      "'uniform'."
    )
  return pi / pi.sum()


def numbers(text: str, field: str) -> list[float]:
  """Numbers separated by commas."""
  try:
    return [float(part) for part in text.split(',')]
  except ValueError:
    raise UserError(f"{field}='{text}' must be numbers separated by commas.") from None
