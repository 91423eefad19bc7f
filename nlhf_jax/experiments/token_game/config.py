"""The experiment that trains language models on a game small enough to list."""

import json
import math
from pathlib import Path

from ml_collections import ConfigDict

from nlhf_jax.algorithms.algorithm import asks_judge
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.language import config as language_config
from nlhf_jax.experiments.language.config import make_stage, named_key
from nlhf_jax.experiments.names import functions
from nlhf_jax.experiments.specs import Learner, Method, Stage, TokenGameExperiment, Training
from nlhf_jax.experiments.tabular import config as tabular_config
from nlhf_jax.games import exact, solvers
from nlhf_jax.games.game import make_game
from nlhf_jax.games.solvers import Solver
from nlhf_jax.models import architectures
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.tasks.token_game.responses import LETTERS, make_token_game

MOST = 1_000  # responses to a prompt; payoffs and equilibria are dense


def make_experiment(config: ConfigDict, name: str, folder: Path) -> TokenGameExperiment:
  """The experiment that a config describes; its stages are kept in `folder`.

  Raises:
    UserError: if a setting cannot be used.
  """
  check(config)
  game = make_token_game(seed=config.seed, **config.game)
  return TokenGameExperiment(
    name=name,
    game=game,
    tau=config.tau,
    target=config.target,
    decoder=make_decoder(architectures.small(vocabulary=game.stop + 1, **config.model)),
    key=named_key(config.seed, 'reference'),
    scale=config.reference.scale,
    methods={label: make_method(config, label) for label in config.methods},
    stages=make_stages(config, folder),
    learners=make_learners(config, folder),
  )


def check(config: ConfigDict) -> None:
  """Refuses what cannot work before any work is done.

  Raises:
    UserError: that names the field, its value and what the value must be.
  """
  language_config.check(config)
  game = config.game
  for field in ('tau', 'target'):
    if not 0 < config[field] < math.inf:
      raise UserError(f'config.{field}={config[field]} must be above 0, and finite.')
  for field in ('styles', 'quality', 'taste'):
    if not 0 <= game[field] < math.inf:
      raise UserError(f'config.game.{field}={game[field]} must be at least 0, and finite.')
  if not 2 <= game.symbols <= len(LETTERS):
    raise UserError(f'config.game.symbols={game.symbols} must be between 2 and {len(LETTERS)}.')
  responses = sum(game.symbols**size for size in range(game.response_length + 1))
  if responses > MOST:
    raise UserError(
      f'config.game.symbols={game.symbols} and config.game.response_length='
      f'{game.response_length} make {responses} responses, of which {MOST} at most can be listed.'
    )
  if not config.methods:
    raise UserError('config.methods is empty; there is nothing to train.')


def make_player(config: ConfigDict, row: ConfigDict, field: str) -> Training:
  """How a row of the catalogue that plays is trained, from the section called `field`."""
  training = language_config.make_training(row, field)
  if not asks_judge(training.algorithm):
    raise UserError(f"{field}.algorithm: '{row.algorithm}' learns from data, not by playing.")
  if training.batch % config.game.prompts:
    raise UserError(
      f'{field}.batch={training.batch} must be a multiple of config.game.prompts='
      f'{config.game.prompts}: every batch asks all of them.'
    )
  return training


def make_method(config: ConfigDict, label: str) -> Method:
  """A method of the section `methods`; a `pull` is what eta tau of its solver shall be."""
  row, field = config.methods[label], f'config.methods.{label}'
  training = make_player(config, row.training, f'{field}.training')
  known = functions(solvers, Solver) | functions(exact, Solver)
  where = f'{field}.tabular'
  arguments = dict(row.tabular.arguments)
  if 'pull' in arguments:
    arguments['eta'] = arguments.pop('pull') / config.tau
  solver = tabular_config.call(
    known, row.tabular.solver, arguments, f'{where}.solver', f'{where}.arguments'
  )
  try:
    trial = make_game([[0.0]], tau=config.tau)
    solver.init(trial, trial.log_reference)
  except UserError as error:
    raise UserError(f'{where}: {error}') from None
  return Method(training, solver, row.tabular.solver, row.tabular.updates)


def make_stages(config: ConfigDict, folder: Path) -> dict[str, Stage]:
  """A stage a method."""
  plain, shared = settings(config)
  return {
    label: make_stage(label, shared | {'training': row['training']}, config.seed, folder)
    for label, row in plain['methods'].items()
  }


def make_learners(config: ConfigDict, folder: Path) -> dict[str, Learner]:
  """The rows of the section `votes`."""
  plain, shared = settings(config)
  asked = {name: plain['votes'][name] for name in ('batches', 'ridge')}
  learners = {}
  for label, row in config.votes.learners.items():
    training = make_player(config, row, f'config.votes.learners.{label}')
    of_row = shared | asked | {'training': plain['votes']['learners'][label]}
    stage = make_stage(f'{label}_by_votes', of_row, config.seed, folder)
    learners[label] = Learner(training, stage, **asked)
  return learners


def settings(config: ConfigDict) -> tuple[dict, dict]:
  """The config in plain values, and what of it determines every stage."""
  plain = json.loads(config.to_json_best_effort())
  return plain, {name: plain[name] for name in ('seed', 'tau', 'game', 'model', 'reference')}
