"""The ranges of all numbers in a config, and functions that a config calls by name.

The ranges of a section are declared where its values are used: in the signature of the function, or
in the fields of the NamedTuple, that takes them. This module lists them for the sections that
experiments with language models share, and declares those that no function takes as a whole.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Annotated, Any, NamedTuple

from ml_collections import ConfigDict

from nlhf_jax import ranges
from nlhf_jax.algorithms.catalogue import ALGORITHMS
from nlhf_jax.data.dataset import FileData
from nlhf_jax.errors import UserError
from nlhf_jax.judges.combined import CombinedSettings
from nlhf_jax.judges.endpoint import Endpoint
from nlhf_jax.judges.gpm import make_general_preference_network
from nlhf_jax.judges.remote import make_remote_judge
from nlhf_jax.models import architectures, sharding
from nlhf_jax.models.lora import Lora
from nlhf_jax.ranges import (
  AtLeastOne,
  AtLeastTwo,
  Count,
  Fraction,
  NonNegative,
  Positive,
  Range,
  Seed,
)
from nlhf_jax.sampling.token import Filters
from nlhf_jax.tasks.summaries.corpus import SyntheticData
from nlhf_jax.training.generation_server import ServerSettings
from nlhf_jax.training.optimizers import make_optimizer


class Section(NamedTuple):
  """Values of a config, what declares their ranges, and the field, such as `config.sft`."""

  declaration: Callable
  values: Mapping[str, Any]
  field: str


class GeneralSettings(NamedTuple):
  """The top level of a config."""

  seed: Seed


class TrainingSettings(NamedTuple):
  """The length of training of a stage; only `sft` may have no steps."""

  steps: Count
  batch: AtLeastOne
  accumulate: AtLeastOne
  evaluate_every: AtLeastOne
  checkpoint_minutes: NonNegative
  missing_verdicts: Fraction


class VotingSettings(NamedTuple):
  """The votes of a policy whose judge is learned in rounds, and the judges fitted to them."""

  rounds: AtLeastOne
  total: AtLeastOne
  candidates: AtLeastOne
  ensemble: AtLeastOne


class OpponentSettings(NamedTuple):
  """The price of the KL of a policy's opponent, in win probability per nat, and its step."""

  tau: NonNegative
  learning_rate: Positive


class PrompterSettings(NamedTuple):
  """The number of prompts to choose from, the price of the prompter's KL, and its step."""

  pool: AtLeastTwo
  tau: Positive
  learning_rate: Positive


class TournamentSettings(NamedTuple):
  """The prompts of the tournament, how many are sampled at once, and the responses of best of n."""

  prompts: AtLeastOne
  batch: AtLeastOne
  best_of: Count


class DialogueSettings(NamedTuple):
  """The turns of a policy, and the tokens of a user's reply."""

  turns: AtLeastOne
  reply_length: AtLeastOne


class RefinementSettings(NamedTuple):
  """How often a response is refined at inference."""

  rounds: Count


class CurveSettings(NamedTuple):
  """The number of held-out prompts that learning curves are measured on."""

  prompts: AtLeastOne


class PairRMSettings(NamedTuple):
  """The number of pairs that PairRM reads at once."""

  batch: AtLeastOne


def _is_request(text: str) -> bool:
  try:
    fields = json.loads(text)
    json.dumps(fields, allow_nan=False)  # a request contains no NaN and no infinity
  except (ValueError, RecursionError):
    return False
  return isinstance(fields, dict) and not {'model', 'messages', 'stream'} & set(fields)


REQUEST = Range(
  'a JSON object of fields of the request, such as {"max_tokens": 1}, without model, messages and '
  'stream',
  _is_request,
)


class RemoteSettings(NamedTuple):
  """Fields of requests to a remote judge."""

  request: Annotated[str, REQUEST]


class Prices(NamedTuple):
  """Prices of a million tokens of prompts and of responses."""

  prompt: NonNegative
  response: NonNegative


def check(sections: Iterable[Section]) -> None:
  """Refuses numbers that are not in their ranges.

  Raises:
    UserError: the message names the field, its value and the range.
  """
  for section in sections:
    ranges.check(*section)


def language_sections(config: ConfigDict) -> Iterator[Section]:
  """The sections of a config that trains language models, or judges."""
  yield Section(GeneralSettings, config, 'config')
  from_file = 'path' in config.data  # the name of the source is checked later
  yield Section(FileData if from_file else SyntheticData, config.data, 'config.data')
  yield Section(sharding.make_mesh, config.mesh, 'config.mesh')
  yield Section(architectures.small, config.model, 'config.model')
  for name, sizes in config.get('sizes', {}).items():
    yield Section(architectures.small, sizes, f'config.sizes.{name}')
  yield Section(Lora, config.model.lora, 'config.model.lora')
  yield from training_sections(config)
  for name, row in config.policies.items():
    if 'votes' in row:
      field = f'config.policies.{name}.votes'
      yield Section(VotingSettings, row.votes, field)
      yield from training_sections(row.votes.training, f'{field}.training')
    for part, declaration in (('opponent', OpponentSettings), ('prompter', PrompterSettings)):
      yield Section(declaration, row.get(part, {}), f'config.policies.{name}.{part}')
  gpm = 'general_preference_model'
  yield Section(make_general_preference_network, config[gpm], f'config.{gpm}')
  yield Section(PairRMSettings, config.pairrm, 'config.pairrm')
  for declaration in (Endpoint, make_remote_judge, RemoteSettings):
    yield Section(declaration, config.remote, 'config.remote')
  yield Section(Prices, config.remote.prices, 'config.remote.prices')
  yield Section(ServerSettings, config.generation_server, 'config.generation_server')
  yield Section(CombinedSettings, config.combined, 'config.combined')
  yield Section(CurveSettings, config.curves, 'config.curves')
  yield Section(RefinementSettings, config.get('refinement', {}), 'config.refinement')
  yield Section(DialogueSettings, config.get('dialogue', {}), 'config.dialogue')
  yield Section(TournamentSettings, config.tournament, 'config.tournament')
  yield Section(Filters, config.tournament.filters, 'config.tournament.filters')


def training_sections(section: ConfigDict, field: str = 'config') -> Iterator[Section]:
  """The sections of each training at any depth; a training is a section with an `optimizer`."""
  if 'optimizer' in section:
    yield Section(TrainingSettings, section, field)
    if section.algorithm in ALGORITHMS:
      yield Section(ALGORITHMS[section.algorithm], section.arguments, f'{field}.arguments')
    yield Section(make_optimizer, section.optimizer, f'{field}.optimizer')
    if 'filters' in section:
      yield Section(Filters, section.filters, f'{field}.filters')
    return
  for name, value in section.items():
    if isinstance(value, ConfigDict):
      yield from training_sections(value, f'{field}.{name}')


# --- Functions that a config calls by name ---


def factories(module: ModuleType, returns: type) -> dict[str, Callable]:
  """The public functions of a module that are annotated to return this type, by name."""
  return {
    name: member
    for name, member in inspect.getmembers(module, inspect.isfunction)
    if inspect.signature(member).return_annotation is returns and not name.startswith('_')
  }


def call_by_name(
  known: Mapping[str, Callable], name: str, arguments: Mapping, field: str, where: str
) -> Any:
  """Calls a function by its name with arguments from a config.

  Args:
    known: name -> function.
    name: of the function.
    arguments: name -> value.
    field: the field that has the name.
    where: the field that has the arguments.

  Raises:
    UserError: if there is no such function, or it does not take the arguments.
  """
  if name not in known:
    raise UserError(f"{field}: there is no '{name}'; use one of {', '.join(known)}.")
  try:
    inspect.signature(known[name]).bind(**arguments)
  except TypeError as error:
    raise UserError(f"{where}: '{name}' got {list(arguments)}: {error}.") from None
  ranges.check(known[name], arguments, where)
  return known[name](**arguments)


def parse_numbers(text: str, field: str) -> list[float]:
  """Numbers separated by commas.

  Raises:
    UserError: if one is not a number; the message names the field.
  """
  try:
    return [float(part) for part in text.split(',')]
  except ValueError:
    raise UserError(f"{field}='{text}' must be numbers separated by commas.") from None
