"""The config of the experiment that trains a transformer on a token game."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from nlhf_jax.algorithms.algorithm import needs_judge
from nlhf_jax.errors import UserError
from nlhf_jax.experiments import sections
from nlhf_jax.experiments.game_specs import Learner, Method, SolverRun, TokenGameExperiment
from nlhf_jax.experiments.language import config as language_config
from nlhf_jax.experiments.memory_limits import (
  check_candidates,
  check_model,
  check_table,
  count_sequences,
)
from nlhf_jax.experiments.sections import GeneralSettings, Section, call_by_name, training_sections
from nlhf_jax.experiments.specs import Stage, Training
from nlhf_jax.experiments.stage_config import key_from_name, make_stage
from nlhf_jax.experiments.tabular.config import SOLVERS
from nlhf_jax.experiments.token_game.active_learning import count_votes
from nlhf_jax.experiments.training_config import make_training
from nlhf_jax.games.game import make_game
from nlhf_jax.judges.enhancers import NONE, check_enhancer
from nlhf_jax.models import architectures
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.ranges import Positive, PositiveFraction
from nlhf_jax.tasks.token_game.responses import make_token_game

# The settings of a learner that say which pairs it votes on, and those of a training alone.
PAIRS = {'enhancer': NONE, 'candidates': 1, 'one_shot': False}
MOST_RESPONSES = 1_000  # to a prompt; payoffs and equilibria are dense


class ReferenceSettings(NamedTuple):
  """The scale of the reference's embeddings; the smaller, the nearer it is to uniform."""

  scale: Positive


class PullSettings(NamedTuple):
  """The pull of a solver towards the reference, eta tau."""

  pull: PositiveFraction


def make_experiment(config: ConfigDict, name: str, folder: Path) -> TokenGameExperiment:
  """Makes the experiment of a config; its stages are stored in `folder`.

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
    key=key_from_name(config.seed, 'reference'),
    scale=config.reference.scale,
    methods={label: make_method(config, label) for label in config.methods},
    stages=make_stages(config, folder),
    learners=make_learners(config, folder),
  )


def check(config: ConfigDict) -> None:
  """Refuses settings that cannot work, before any work is done.

  Raises:
    UserError: the message names the field, its value and the values that are valid.
  """
  sections.check(token_game_sections(config))
  language_config.check_heads(config.model)
  game = config.game
  responses = count_sequences(game.symbols, game.response_length, MOST_RESPONSES)
  if responses > MOST_RESPONSES:
    raise UserError(
      f'config.game.symbols={game.symbols} and config.game.response_length='
      f'{game.response_length} make {responses} responses or more, but at most {MOST_RESPONSES} '
      'can be listed; lower one of them.'
    )
  check_table(responses, game.raters + game.prompts, 'config.game: raters, prompts')
  for label, row in config.votes.learners.items():
    candidates = row.get('candidates', PAIRS['candidates'])
    check_candidates(candidates, row.batch, f'config.votes.learners.{label}.candidates')
  check_model(config.model, game.symbols + 1)
  if not config.methods:
    raise UserError('config.methods is empty; name at least one algorithm.')


def token_game_sections(config: ConfigDict) -> Iterator[Section]:
  """The sections of a config of this kind, with the declarations of their ranges."""
  yield Section(GeneralSettings, config, 'config')
  yield Section(TokenGameExperiment, config, 'config')
  yield Section(make_token_game, config.game, 'config.game')
  yield Section(architectures.small, config.model, 'config.model')
  yield Section(ReferenceSettings, config.reference, 'config.reference')
  yield from training_sections(config)
  yield Section(Learner, config.votes, 'config.votes')
  for label, learner in config.votes.learners.items():
    yield Section(Learner, learner, f'config.votes.learners.{label}')
  for label, method in config.methods.items():
    section, field = method.tabular, f'config.methods.{label}.tabular'
    yield Section(SolverRun, section, field)
    yield Section(PullSettings, section.arguments, f'{field}.arguments')
    if section.solver in SOLVERS:
      yield Section(SOLVERS[section.solver], section.arguments, f'{field}.arguments')


def make_self_play_training(config: ConfigDict, section: ConfigDict, field: str) -> Training:
  """The training of an algorithm that samples both sides, from the section called `field`."""
  training = make_training(section, field)
  if not needs_judge(training.algorithm):
    raise UserError(
      f"{field}.algorithm: '{section.algorithm}' learns from data; use one that needs a judge."
    )
  if training.batch % config.game.prompts:
    raise UserError(
      f'{field}.batch={training.batch} must be a multiple of config.game.prompts='
      f'{config.game.prompts}: each batch has all of them equally often.'
    )
  return training


def make_method(config: ConfigDict, label: str) -> Method:
  """A method of the section `methods`; its argument `pull` is eta tau of the solver."""
  section, field = config.methods[label], f'config.methods.{label}'
  training = make_self_play_training(config, section.training, f'{field}.training')
  where = f'{field}.tabular'
  arguments = dict(section.tabular.arguments)
  if 'pull' in arguments:
    arguments['eta'] = arguments.pop('pull') / config.tau
  solver = call_by_name(
    SOLVERS, section.tabular.solver, arguments, f'{where}.solver', f'{where}.arguments'
  )
  try:
    trial = make_game([[0.0]], tau=config.tau)
    solver.init(trial, trial.log_reference)
  except UserError as error:
    raise UserError(f'{where}: {error}') from None
  return Method(training, solver, section.tabular.solver, section.tabular.updates)


def make_stages(config: ConfigDict, folder: Path) -> dict[str, Stage]:
  """The stage of each method."""
  plain, shared = shared_settings(config)
  return {
    label: make_stage(label, shared | {'training': section['training']}, config.seed, folder)
    for label, section in plain['methods'].items()
  }


def make_learners(config: ConfigDict, folder: Path) -> dict[str, Learner]:
  """The learners of the section `votes`.

  Raises:
    UserError: if a setting is wrong, or there are no pairs to vote on.
  """
  plain, shared = shared_settings(config)
  vote_settings = {name: plain['votes'][name] for name in ('batches', 'ridge')}
  learners = {}
  for label, section in config.votes.learners.items():
    field = f'config.votes.learners.{label}'
    training = make_self_play_training(config, section, field)
    pairs = {name: section.get(name, default) for name, default in PAIRS.items()}
    check_enhancer(pairs['enhancer'], pairs['candidates'], field)
    own = {name: it for name, it in plain['votes']['learners'][label].items() if name not in pairs}
    stage_settings = shared | vote_settings | {'training': own}
    stage_settings['round'] = training.schedule.evaluate_every  # which determines the votes
    if pairs['enhancer'] != NONE:  # without any, as before there were enhancers
      stage_settings |= {name: pairs[name] for name in ('enhancer', 'candidates')}
    if pairs['one_shot']:
      stage_settings['one_shot'] = True
    stage = make_stage(f'{label}_by_votes', stage_settings, config.seed, folder)
    learners[label] = Learner(training, stage, **vote_settings, **pairs)
    try:
      count_votes(learners[label])
    except UserError as error:
      raise UserError(f'{field}: {error}') from None
  return learners


def shared_settings(config: ConfigDict) -> tuple[dict, dict]:
  """The config as plain values, and the part of it that determines all stages."""
  plain = json.loads(config.to_json_best_effort())
  return plain, {name: plain[name] for name in ('seed', 'tau', 'game', 'model', 'reference')}
