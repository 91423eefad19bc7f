"""The policies that `config.entries` names: pretrained models, policies of runs, response files."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from nlhf_jax.data import tokenizers
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import response_files
from nlhf_jax.evaluation.response_files import FiledResponses
from nlhf_jax.experiments.evaluate.best_of_entries import (
  BestOfCall,
  check_selecting_judge,
  parse_best_of,
  split_entries,
)
from nlhf_jax.experiments.language.run_folder import open_run
from nlhf_jax.experiments.model_config import make_loader, make_numerics
from nlhf_jax.experiments.specs import (
  BestOf,
  Entry,
  LanguageExperiment,
  ModelSource,
  PretrainedModel,
  RunPolicy,
  entry_slots,
)
from nlhf_jax.models import architectures
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.storage import hub
from nlhf_jax.storage.hub import fingerprint
from nlhf_jax.storage.texts import printable

FIELD = 'config.entries'
MAX_NAME = 80  # characters


def make_entries(
  config: ConfigDict, references: Sequence[Mapping], folder: Path, optional: bool = False
) -> dict[str, Entry]:
  """Name -> entry of `config.entries`.

  Args:
    config: of the evaluation.
    references: outputs of AlpacaEval's reference, for annotations that refer to them.
    folder: of stages, for runs whose stages are not in their own folder.
    optional: whether there may be no entry.

  Raises:
    UserError: if there is none, two have the same name, or one cannot be found or read.
  """
  entries: dict[str, Entry] = {}
  for item in split_entries(config.entries):
    found = None if Path(item).exists() else parse_best_of(item, FIELD)
    if found:
      what, made = item, make_best_of(config, *found, folder)
    else:
      name, _, what = ('', '', item) if Path(item).exists() else item.rpartition('=')
      made = make_entry(config, name, what, references, folder)
    for label, entry in made.items():
      label = check_label(label, what)
      if label in entries:
        raise UserError(f"{FIELD}: two are called '{label}'; name one of them, as NAME={what}.")
      entries[label] = entry
  if not entries and not optional:
    raise UserError(
      f'{FIELD} is empty; name models or files of responses, as mine=DIR,theirs=FILE.json.'
    )
  return entries


def make_best_of(
  config: ConfigDict, name: str, call: BestOfCall, folder: Path
) -> dict[str, BestOf]:
  """The entry of a call `best_of(...)`, under its name.

  Raises:
    UserError: if its judge or its model cannot be used.
  """
  check_selecting_judge(config, call.judge, FIELD)
  ((label, base),) = make_entry(config, '', call.what, (), folder).items()
  if isinstance(base, FiledResponses):
    raise UserError(
      f"{FIELD}: best_of({call.n}, {call.what}, ...): '{call.what}' is a file, which has one "
      'response to a prompt; give a model, or FOLDER:POLICY of a run.'
    )
  return {name or f'best_of_{call.n}_{label}': BestOf(call.n, base, call.judge, call.rule)}


def check_label(label: str, what: str) -> str:
  """The name of an entry, with `__` for slashes: it becomes the name of a folder.

  Raises:
    UserError: if no folder should have the name.
  """
  label = label.replace('/', '__')
  if printable(label) != label or not label.strip() or label[0] == '.' or len(label) > MAX_NAME:
    raise UserError(
      f"{FIELD}: '{printable(label)[:MAX_NAME]}' of '{what}' cannot name a folder (it is empty, "
      f'begins with a dot, has control characters, or more than {MAX_NAME} characters); name the '
      f'entry, as NAME={what}.'
    )
  return label


def make_entry(
  config: ConfigDict, name: str, what: str, references: Sequence[Mapping], folder: Path
) -> dict[str, Entry]:
  """The entries of an item `name=what`; a file of several policies gives `name_policy` for each."""
  path = Path(what)
  if path.is_file():
    found = response_files.read(path, references)
    if len(found) == 1:
      ((own, filed),) = found.items()
      return {name or own or Path(path.name.removesuffix('.gz')).stem: filed}
    return {f'{name}_{own}' if name else own: filed for own, filed in found.items()}
  if path.name.removesuffix('.gz').endswith(('.json', '.jsonl')):
    raise UserError(f"{FIELD}: there is no file '{what}'.")
  run, _, policy = what.rpartition(':')
  if run and (Path(run) / 'config.json').is_file():
    experiment = read_run(Path(run), folder)
    known = entry_slots(experiment.policies)
    if policy not in known:
      raise UserError(f"{FIELD}: '{run}' has no policy '{policy}'; it has {', '.join(known)}.")
    return {name or policy: RunPolicy(experiment, policy)}
  return {name or path.name: make_pretrained(config, what)}


def read_run(run: Path, folder: Path) -> LanguageExperiment:
  """The experiment of a work directory; its stages are there or, if not, in `folder`."""
  try:
    return open_run(run, folder)
  except UserError as error:
    raise UserError(f'{FIELD}: {error}') from None


def make_pretrained(config: ConfigDict, name: str) -> PretrainedModel:
  """A model by its folder or hub name."""
  folder = hub.locate(name, field=FIELD)
  family, sizes = architectures.read_architecture(folder)
  decoder = make_decoder(sizes, make_numerics(config.model))
  tokenizer = tokenizers.load(name, field=FIELD)
  if len(tokenizer) > sizes.vocabulary:
    raise UserError(
      f"{FIELD}: the tokenizer of '{name}' has {len(tokenizer)} tokens, but its embedding only "
      f'{sizes.vocabulary}; they do not belong together.'
    )
  begin = make_loader(decoder, ModelSource(name, folder, family))
  settings = [fingerprint(name, FIELD), config.model.compute, config.model.weights]
  # All parameters are read from the file, so the key has no effect.
  load = functools.partial(begin, jax.random.key(0))
  return PretrainedModel(decoder, load, tokenizer, sizes.max_positions, settings)
