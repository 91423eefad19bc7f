"""Experiments as plain records, which config readers make and runs use."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array

from nlhf_jax.algorithms.algorithm import Algorithm
from nlhf_jax.data.batches import Examples
from nlhf_jax.data.dataset import Corpus, Oracle
from nlhf_jax.data.schemas import Example
from nlhf_jax.evaluation.benchmarks.benchmark import Benchmark, find_references
from nlhf_jax.evaluation.response_files import FiledResponses
from nlhf_jax.judges.combined import Combination
from nlhf_jax.judges.kinds import ExternalJudge
from nlhf_jax.judges.remote import ChatClient
from nlhf_jax.models.architectures import Architecture
from nlhf_jax.models.blocks import Numerics
from nlhf_jax.models.decoder import Decoder
from nlhf_jax.models.lora import Lora
from nlhf_jax.sampling.dialogue_rollout import Dialogue
from nlhf_jax.sampling.token import UNFILTERED, Filters
from nlhf_jax.structs import Params
from nlhf_jax.training.generation_server import ServerSettings
from nlhf_jax.training.loop import Schedule
from nlhf_jax.training.opponent_play import Prices

# --- Stages and what they train ---


class Training(NamedTuple):
  """The training of one stage; `batch` is in examples, `schedule` in updates.

  With `skip`, updates whose loss or gradient is not finite are left out; otherwise they end it.
  """

  algorithm: Algorithm
  optimizer: optax.GradientTransformation
  batch: int
  accumulate: int  # equal parts that a batch is split into, to save memory
  schedule: Schedule
  skip: bool = False

  @property
  def steps(self) -> int:
    """The number of updates."""
    return self.schedule.steps


class Voting(NamedTuple):
  """How the judge of a policy is learned while the policy trains, in `rounds` of equal length.

  At the start of each round `per_round` votes are asked on pairs of a response of the policy and
  the one that the `enhancer` chooses of `candidates` others. Then `ensemble` judges, whose mean the
  policy learns from, are fitted to all votes so far, each by the training of that round.
  """

  rounds: int
  per_round: int
  enhancer: str
  candidates: int
  ensemble: int
  trainings: Sequence[Training]


class Prompter(NamedTuple):
  """A distribution over the first `pool` training prompts, trained beside a policy."""

  algorithm: Algorithm
  optimizer: optax.GradientTransformation
  pool: int


class Opponent(NamedTuple):
  """A second language model, which a policy plays against and which is trained beside it.

  With an `instruction` it reads the policy's response and answers it; without, the prompt alone.
  """

  algorithm: Algorithm
  optimizer: optax.GradientTransformation
  prices: Prices
  instruction: str
  prompter: Prompter | None


class Policy(NamedTuple):
  """The training of a policy, and which of its slots enter the tournament.

  `judge` is a name, or None where the algorithm uses no judge; `feedback` turns its preference
  into the payoff. With `async_judge`, responses are judged during the update on the previous ones.
  `filters` are those of all samples that it trains on, which are sampled by the generation server
  if `served`. With `voting`, the judge is asked for votes alone, and the policy learns from judges
  that are fitted to them. With an `opponent`, the policy plays against that one.
  """

  training: Training
  judge: str | None
  feedback: Callable[[jax.Array, jax.Array], jax.Array]
  entries: Mapping[str, str]  # name in the tournament -> slot
  async_judge: bool = False
  filters: Filters = UNFILTERED
  voting: Voting | None = None
  served: bool = False
  opponent: Opponent | None = None


def entry_slots(policies: Mapping[str, Policy]) -> dict[str, tuple[str, str]]:
  """Entry of the tournament -> its stage, and its slot there."""
  slots = {'sft': ('sft', 'policy')}
  for name, policy in policies.items():
    slots |= {entry: (name, slot) for entry, slot in policy.entries.items()}
  return slots


class Stage(NamedTuple):
  """A piece of work whose outcome is stored on disk: its name, its key and its folder.

  The folder's name contains a digest of the settings that determine the outcome, including those
  of the stages that it builds on, so that any run that needs the same outcome finds it. Others
  change no number, such as how often to evaluate: they are `incidental`. `code` is a digest of this
  package's source.
  """

  name: str
  key: jax.Array
  folder: Path
  settings: Mapping[str, Any]
  incidental: Mapping[str, Any]
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


class HeldApart(NamedTuple):
  """Of the judge that only evaluates: the stage of its kind, and its comparisons.

  No prompt of the comparisons is one that anything else is trained on.
  """

  kind: str
  comparisons: Examples


class Refinement(NamedTuple):
  """How often entries improve their own responses at inference, and what asks them to.

  `file` has the outcome, in the folder of the tournament.
  """

  rounds: int
  instruction: str
  file: str


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
  judge_sections: Mapping[str, Mapping[str, Any]]  # by stage; settings of trained judges
  panel: Sequence[str]  # the judges of the tournament; the last one measures learning curves
  policies: Mapping[str, Policy]
  exploiter: Training | None
  exploiter_wins: str  # the file, in an exploiter's folder, of its win rates under this panel
  tournament_prompts: int
  tournament_batch: int  # prompts responded to at once
  best_of: int  # responses of SFT, of which the tournament has the best; 0 for no such entry
  best_of_judge: str  # which selects it
  filters: Filters
  external: Mapping[str, Callable[[], ExternalJudge]]  # those that are used
  combined: Mapping[str, Combination]
  curve_prompts: int  # held-out prompts that learning curves are measured on
  held_apart: HeldApart | None
  unfinished_loses: bool  # whether a response that was cut loses to one that ended
  refinement: Refinement | None
  dialogue: Dialogue | None  # with whom the policies converse; None: they write one response
  generation_server: ServerSettings | None  # None: no policy is sampled by one

  def may_abstain(self, judge: str) -> bool:
    """Whether a judge, or one that it is combined from, may have no verdict on a pair."""
    combination = self.combined.get(judge)
    return any(name in self.external for name in (combination.judges if combination else [judge]))


class PretrainedModel(NamedTuple):
  """A model in the Hugging Face layout; `load()` reads its weights.

  `settings` determine everything that it computes.
  """

  decoder: Decoder
  load: Callable[[], Params]
  tokenizer: Any
  max_positions: int
  settings: object


class RunPolicy(NamedTuple):
  """A policy of a finished run."""

  experiment: LanguageExperiment
  policy: str


class BestOf(NamedTuple):
  """The best of n responses of a model, selected by a judge.

  `rule` is one of `games.best_of_n.RULES`.
  """

  n: int
  base: PretrainedModel | RunPolicy
  judge: str
  rule: str


Entry = FiledResponses | PretrainedModel | RunPolicy | BestOf


class EvaluateExperiment(NamedTuple):
  """Everything that an evaluation needs, without its config.

  Attributes:
    name: of the experiment.
    seed: of sampling and of the order of prompts.
    entries: name -> policy.
    prompts: of the tournament; every file of responses has a response to each. Without any there
      is no tournament.
    judges: of the tournament: name -> digest of everything that determines the preferences.
    selectors: the same for the judges that select responses of `BestOf` entries.
    trained: the experiment that trains the learned judges, if there are any.
    oracle: of the embedded task, if the data are its.
    external: name -> factory of an external judge.
    panel: the judges of the tournament and of benchmarks; the others are only parts of these.
    combined: name -> combination of judges.
    length: maximum number of tokens in a response.
    batch: prompts per batch.
    filters: of sampling.
    early_stopping: probability of a wrong order at which the tournament stops early; 0 never does.
    benchmarks: to run.
    chat_judge: name of the language model that grades answers.
    make_chat_judge: its factory; None if no benchmark needs one.
  """

  name: str
  seed: int
  entries: Mapping[str, Entry]
  prompts: Sequence[str]
  judges: Mapping[str, str]
  selectors: Mapping[str, str]
  trained: LanguageExperiment | None
  oracle: Oracle | None
  external: Mapping[str, Callable[[], ExternalJudge]]
  panel: Sequence[str]
  combined: Mapping[str, Combination]
  length: int
  batch: int
  filters: Filters
  early_stopping: float
  benchmarks: Sequence[Benchmark]
  chat_judge: str
  make_chat_judge: Callable[[], ChatClient] | None

  @property
  def references(self) -> Sequence[Mapping]:
    """Outputs of the reference policy of a benchmark, if one has them."""
    return find_references(self.benchmarks)


class JudgeExperiment(NamedTuple):
  """Trains judges of several kinds and sizes on the same comparisons.

  `sizes` has one experiment for each size of the network; `tests` names sets of comparisons that
  are used for testing only.
  """

  name: str
  sizes: Mapping[str, LanguageExperiment]
  tests: Mapping[str, Sequence[Example]]

  @property
  def first(self) -> LanguageExperiment:
    """The experiment of the first size; all share their data and their external judges."""
    return next(iter(self.sizes.values()))
