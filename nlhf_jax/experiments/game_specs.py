"""Experiments on games whose payoffs are known, as plain records.

As in `specs`, config readers make them and runs use them.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from nlhf_jax.experiments.specs import Stage, Training
from nlhf_jax.games.game import Game
from nlhf_jax.games.solvers import Solver
from nlhf_jax.games.tables import Table
from nlhf_jax.models.decoder import Decoder
from nlhf_jax.ranges import AtLeastOne, AtLeastTwo, Positive, Seed
from nlhf_jax.sample_complexity.links import Link
from nlhf_jax.sample_complexity.setting import Setting
from nlhf_jax.sample_complexity.worlds import World
from nlhf_jax.tasks.token_game.responses import TokenGame


class SolverRun(NamedTuple):
  """A solver, and the number of updates it makes."""

  solver: Solver
  updates: AtLeastOne


class TabularExperiment(NamedTuple):
  """A game on each of X prompts, with equal weights, and the solvers to run on it."""

  name: str
  game_name: str
  table: Table
  game: Game  # with a leading axis X
  start: Float[Array, 'X K']  # log-probabilities
  samplings: Mapping[str, Float[Array, 'X K']]  # pairs from which a reward for RLHF is fitted
  runs: Mapping[str, SolverRun]


class Measurement(NamedTuple):
  """One measurement: a world, settings by KL coefficient, and arguments of the protocol."""

  name: str  # of the world
  world: World
  settings: dict[float, Setting]  # by tau
  votes: np.ndarray | None  # numbers of votes, increasing
  others: list[float]  # weights of pairs without the safest action in offline data
  arguments: dict[str, float]  # other arguments of the protocol, by name


class SampleComplexityExperiment(NamedTuple):
  """Four measurements over the same number of seeds."""

  name: str
  payoff: str
  link: Link
  seed: Seed
  seeds: AtLeastTwo
  rates: Measurement
  offline: Measurement
  online: Measurement
  rewards: Measurement


class Method(NamedTuple):
  """An algorithm, and the tabular solver of the same game that it is plotted with."""

  training: Training
  solver: Solver
  solver_name: str
  updates: int


class Learner(NamedTuple):
  """An algorithm that also learns the preferences, in rounds of `schedule.evaluate_every` updates.

  A round starts with votes on `batches` batches of pairs: those that the algorithm selects or, with
  an `enhancer`, a response of the policy and one of `candidates` others. Its judge is the estimate
  from all votes so far, with `ridge` additional votes for a tie on each pair. With `one_shot` there
  is a single round, which has as many votes as all rounds would.
  """

  training: Training
  stage: Stage
  batches: AtLeastOne
  ridge: Positive
  enhancer: str
  candidates: AtLeastOne
  one_shot: bool

  @property
  def round_length(self) -> int:
    """The number of updates of a round."""
    schedule = self.training.schedule
    return schedule.steps if self.one_shot else schedule.evaluate_every

  @property
  def batches_per_round(self) -> int:
    """The number of batches of votes at the start of a round."""
    rounds = -(-self.training.schedule.steps // self.training.schedule.evaluate_every)
    return self.batches * rounds if self.one_shot else self.batches


class TokenGameExperiment(NamedTuple):
  """Trains a transformer on a token game, with true payoffs (`methods`) or votes (`learners`)."""

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
