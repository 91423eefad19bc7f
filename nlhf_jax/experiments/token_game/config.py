"""The experiment that trains language models on a game small enough to list."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from nlhf_jax.algorithms.algorithm import needs_judge
from nlhf_jax.errors import UserError
from nlhf_jax.experiments import sections
from nlhf_jax.experiments.language import config as language_config
from nlhf_jax.experiments.language.config import Stage, Training, make_stage, named_key
from nlhf_jax.experiments.sections import GeneralSettings, Section, call_by_name, training_sections
from nlhf_jax.experiments.tabular.config import SOLVERS, SolverRun
from nlhf_jax.games.game import make_game
from nlhf_jax.games.solvers import Solver
from nlhf_jax.models import architectures
from nlhf_jax.models.transformer import Decoder, make_decoder
from nlhf_jax.ranges import AtLeastOne, Positive, PositiveFraction
from nlhf_jax.tasks.token_game.responses import TokenGame, make_token_game

MOST = 1_000  # responses to a prompt; payoffs and equilibria are dense


class Method(NamedTuple):
  """A row of the catalogue, and the solver of the same game that it is shown beside."""

  training: Training
  solver: Solver
  solver_name: str
  updates: int


class Learner(NamedTuple):
  """A row that learns the preference as well: a round of it is `training.evaluate_every` updates.

  A round begins with votes on `batches` batches of what the row selects. Its judge is the estimate
  from all votes so far, each pair of which is given `ridge` votes for a tie.
  """

  training: Training
  stage: Stage
  batches: AtLeastOne
  ridge: Positive


class ReferenceSettings(NamedTuple):
  """The scale of the reference's embeddings; the smaller, the nearer it is to uniform."""

  scale: Positive


class PullSettings(NamedTuple):
  """The pull of a solver towards the reference, eta tau."""

  pull: PositiveFraction


class TokenGameExperiment(NamedTuple):
  """Everything a run needs to know, free of config."""

  name: str
  game: TokenGame
  tau: Positive
  target: Positive  # exploitability below which the game counts as solved
  decoder: Decoder
  key: jax.Array  # of the reference
  scale: float  # of the reference's embeddings, which are its head too
  methods: Mapping[str, Method]
  stages: Mapping[str, Stage]
  learners: Mapping[str, Learner]


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
  sections.check(token_game_sections(config))
  language_config.check_heads(config.model)
  game = config.game
  responses = sum(game.symbols**size for size in range(game.response_length + 1))
  if responses > MOST:
    raise UserError(
      f'config.game.symbols={game.symbols} and config.game.response_length='
      f'{game.response_length} make {responses} responses, of which {MOST} at most can be listed.'
    )
  if not config.methods:
    raise UserError('config.methods is empty; there is nothing to train.')


def token_game_sections(config: ConfigDict) -> Iterator[Section]:
  """The sections of a config of this kind, with the declarations of their ranges."""
  yield Section(GeneralSettings, config, 'config')
  yield Section(TokenGameExperiment, config, 'config')
  yield Section(make_token_game, config.game, 'config.game')
  yield Section(architectures.small, config.model, 'config.model')
  yield Section(ReferenceSettings, config.reference, 'config.reference')
  yield from training_sections(config)
  yield Section(Learner, config.votes, 'config.votes')
  for label, method in config.methods.items():
    section, field = method.tabular, f'config.methods.{label}.tabular'
    yield Section(SolverRun, section, field)
    yield Section(PullSettings, section.arguments, f'{field}.arguments')
    if section.solver in SOLVERS:
      yield Section(SOLVERS[section.solver], section.arguments, f'{field}.arguments')


def make_self_play_training(config: ConfigDict, row: ConfigDict, field: str) -> Training:
  """How a row of the catalogue that plays is trained, from the section called `field`."""
  training = language_config.make_training(row, field)
  if not needs_judge(training.algorithm):
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
  training = make_self_play_training(config, row.training, f'{field}.training')
  where = f'{field}.tabular'
  arguments = dict(row.tabular.arguments)
  if 'pull' in arguments:
    arguments['eta'] = arguments.pop('pull') / config.tau
  solver = call_by_name(
    SOLVERS, row.tabular.solver, arguments, f'{where}.solver', f'{where}.arguments'
  )
  try:
    trial = make_game([[0.0]], tau=config.tau)
    solver.init(trial, trial.log_reference)
  except UserError as error:
    raise UserError(f'{where}: {error}') from None
  return Method(training, solver, row.tabular.solver, row.tabular.updates)


def make_stages(config: ConfigDict, folder: Path) -> dict[str, Stage]:
  """A stage a method."""
  plain, shared = shared_settings(config)
  return {
    label: make_stage(label, shared | {'training': row['training']}, config.seed, folder)
    for label, row in plain['methods'].items()
  }


def make_learners(config: ConfigDict, folder: Path) -> dict[str, Learner]:
  """The rows of the section `votes`."""
  plain, shared = shared_settings(config)
  asked = {name: plain['votes'][name] for name in ('batches', 'ridge')}
  learners = {}
  for label, row in config.votes.learners.items():
    training = make_self_play_training(config, row, f'config.votes.learners.{label}')
    of_row = shared | asked | {'training': plain['votes']['learners'][label]}
    stage = make_stage(f'{label}_by_votes', of_row, config.seed, folder)
    learners[label] = Learner(training, stage, **asked)
  return learners


def shared_settings(config: ConfigDict) -> tuple[dict, dict]:
  """The config in plain values, and what of it determines every stage."""
  plain = json.loads(config.to_json_best_effort())
  return plain, {name: plain[name] for name in ('seed', 'tau', 'game', 'model', 'reference')}
