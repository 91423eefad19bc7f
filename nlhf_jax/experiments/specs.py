"""What an experiment consists of, as plain records: config readers make them, runs use them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float

from nlhf_jax.algorithms.algorithm import Algorithm
from nlhf_jax.data.dataset import Corpus
from nlhf_jax.data.schemas import Record
from nlhf_jax.games.game import Game
from nlhf_jax.games.solvers import Solver
from nlhf_jax.games.tables import Table
from nlhf_jax.models.architectures import Architecture
from nlhf_jax.models.decoder import Decoder
from nlhf_jax.models.lora import Lora
from nlhf_jax.models.transformer import Numerics
from nlhf_jax.sample_complexity.links import Link
from nlhf_jax.sample_complexity.setting import Setting
from nlhf_jax.sample_complexity.worlds import World
from nlhf_jax.sampling.token import Filters
from nlhf_jax.structs import Params
from nlhf_jax.tasks.token_game.responses import TokenGame

# --- Stages and what they train ---


class Training(NamedTuple):
  """How one stage trains; `batch` is in examples, `evaluate_every` in updates."""

  algorithm: Algorithm
  optimizer: optax.GradientTransformation
  steps: int
  batch: int
  accumulate: int  # equal parts that a batch is split into, to save memory
  evaluate_every: int


class Policy(NamedTuple):
  """How a policy trains, and which of its slots enter the tournament.

  `judge` is a name, or None where the algorithm uses no judge; `feedback` turns its preference
  into the payoff. With `ahead`, responses are judged during the update before theirs.
  """

  training: Training
  judge: str | None
  feedback: Callable[[jax.Array, jax.Array], jax.Array]
  players: Mapping[str, str]  # name in the tournament -> slot
  ahead: bool = False


class Stage(NamedTuple):
  """A piece of work whose outcome is kept on disk: its name, its key and its folder.

  The folder's name contains a digest of the settings that determine the outcome, including those
  of the stages that it builds on, so that any run that needs the same outcome finds it. `code` is
  a digest of this package's source.
  """

  name: str
  key: jax.Array
  folder: Path
  settings: Mapping[str, Any]
  code: str


class ModelSource(NamedTuple):
  """Where a pretrained model comes from: name, folder, and the `model_type` of its config."""

  name: str
  folder: Path
  family: str


class Model(NamedTuple):
  """A decoder, its initial parameters, and which of them are trained.

  `begin(key)` returns the initial parameters; `trains(path)` tells whether a parameter of the
  decoder, or of a network built on it, is trained. All slots share those that are not.
  """

  decoder: Decoder
  sizes: Architecture
  numerics: Numerics
  lora: Lora | None
  begin: Callable[[Array], Params]
  trains: Callable[[str], bool]
  source: ModelSource | None


# --- Experiments ---


class LanguageExperiment(NamedTuple):
  """Trains language models: SFT, judges, policies, then a tournament, then exploiters."""

  name: str
  corpus: Corpus
  model: Model
  response_length: int
  seed: int
  stages: Mapping[str, Stage]
  exploiters: Mapping[tuple[str, str], Stage]  # by judge and policy
  sft: Training
  judges: Mapping[str, Training]  # by stage; those that a policy or the tournament uses
  planes: int  # of the embedding model
  panel: Sequence[str]  # the judges of the tournament; the last one measures learning curves
  policies: Mapping[str, Policy]
  exploiter: Training | None
  tournament_prompts: int
  tournament_batch: int  # prompts responded to at once
  filters: Filters
  given: Mapping[str, Callable[[], Any]]  # external judges that are used


class JudgeExperiment(NamedTuple):
  """Trains judges of several kinds and sizes on the same comparisons.

  `sizes` has one experiment for each size of the network; `tests` names sets of comparisons that
  are used for testing only.
  """

  name: str
  sizes: Mapping[str, LanguageExperiment]
  tests: Mapping[str, Sequence[Record]]

  @property
  def first(self) -> LanguageExperiment:
    """The experiment of the first size; all share their data and their external judges."""
    return next(iter(self.sizes.values()))


class SolverRun(NamedTuple):
  """A solver, and how many updates it makes."""

  solver: Solver
  updates: int


class TabularExperiment(NamedTuple):
  """Solves a game, given on each of X equally weighted prompts, with several solvers."""

  name: str
  table: Table
  game: Game  # with a leading axis X
  start: Float[Array, 'X K']  # log-probabilities
  samplings: Mapping[str, Float[Array, 'X K']]  # policies whose samples a reward is fitted to
  rows: Mapping[str, SolverRun]


class Measurement(NamedTuple):
  """One measurement of sample complexity: a world, its regularised games, and the protocol."""

  name: str  # of the world
  world: World
  settings: dict[float, Setting]  # by tau
  votes: np.ndarray | None  # numbers of votes, increasing
  others: list[float]  # weights of the pairs that the data already contain
  arguments: dict[str, float]  # further arguments of the protocol


class SampleComplexityExperiment(NamedTuple):
  """Learns games from votes: four measurements over the same number of seeds."""

  payoff: str
  link: Link
  seed: int
  seeds: int
  rates: Measurement
  offline: Measurement
  online: Measurement
  rewards: Measurement


class Method(NamedTuple):
  """An algorithm of the token game, and the tabular solver that it is compared with."""

  training: Training
  solver: Solver
  solver_name: str
  updates: int


class Learner(NamedTuple):
  """An algorithm of the token game that learns the preference too, in rounds.

  A round lasts `training.evaluate_every` updates and begins with votes on `batches` batches of
  the pairs that the algorithm selects. Its judge is the estimate from all votes so far, with
  `ridge` votes for a tie added to each pair.
  """

  training: Training
  stage: Stage
  batches: int
  ridge: float


class TokenGameExperiment(NamedTuple):
  """Trains language models on a game whose responses can all be listed."""

  name: str
  game: TokenGame
  tau: float
  target: float
  decoder: Decoder
  key: jax.Array  # of the reference
  scale: float  # of the reference's embeddings, which are also its output layer
  methods: Mapping[str, Method]
  stages: Mapping[str, Stage]
  learners: Mapping[str, Learner]
