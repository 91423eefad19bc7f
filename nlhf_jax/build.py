"""From a config to objects; the only module that reads one."""

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from ml_collections import ConfigDict

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.algorithm import Algorithm
from nlhf_jax.data import corpora
from nlhf_jax.data.corpora import Corpus
from nlhf_jax.errors import UserError
from nlhf_jax.models.transformer import Architecture, Decoder, make_decoder
from nlhf_jax.sampling import Filters
from nlhf_jax.training import optimizers


class Training(NamedTuple):
  """How one stage trains."""

  algorithm: Algorithm
  optimizer: optax.GradientTransformation
  steps: int
  batch: int
  evaluate_every: int


class Stage(NamedTuple):
  """A piece of work whose outcome is kept: its name, its key, and the folder of its outcome.

  The folder's name carries a digest of all that determines the outcome, the stages it builds on
  included, so that a finished stage is found again by any run that needs the same one.
  """

  name: str
  key: jax.Array
  folder: Path
  settings: Mapping[str, Any]


class Experiment(NamedTuple):
  """Everything a run needs to know, free of config."""

  name: str
  corpus: Corpus
  decoder: Decoder
  width: int
  response_length: int
  seed: int
  stages: Mapping[str, Stage]
  sft: Training
  preference_model: Training
  policies: Mapping[str, Training]
  tournament_prompts: int
  filters: Filters


def make_experiment(config: ConfigDict, name: str, folder: Path) -> Experiment:
  """The experiment that a config describes; its stages are kept in `folder`.

  Raises:
    UserError: if a setting or the data cannot be used.
  """
  corpus = make_corpus(config)
  model = config.model
  if model.heads % model.key_heads:
    raise UserError(
      f'config.model.heads={model.heads} must be a multiple of config.model.key_heads='
      f'{model.key_heads}.'
    )
  decoder = make_decoder(Architecture(vocabulary=len(corpus.tokenizer), **model))
  policies = {name: make_training(row) for name, row in config.policies.items()}
  return Experiment(
    name=name,
    corpus=corpus,
    decoder=decoder,
    width=model.width,
    response_length=config.data.response_length,
    seed=config.seed,
    stages=make_stages(config, folder),
    sft=make_training(config.sft),
    preference_model=make_training(config.preference_model),
    policies=policies,
    tournament_prompts=config.tournament.prompts,
    filters=Filters(**config.tournament.filters),
  )


def make_corpus(config: ConfigDict) -> Corpus:
  """The data, by `config.data.source`: the name of a `make_*` function of `corpora`."""
  settings = config.data.to_dict()
  source = settings.pop('source')
  if source == 'jsonl' and not settings['path']:
    raise UserError('config.data.path is empty; pass --config.data.path=FILE.jsonl.')
  return _lookup(corpora, f'make_{source}', 'config.data.source')(config.seed, **settings)


def make_training(row: ConfigDict) -> Training:
  """How a stage trains, from `algorithm`, `arguments`, `steps`, `batch` and the optimiser's own."""
  make_algorithm = _lookup(catalogue, row.algorithm, 'algorithm')
  optimizer = optimizers.adamw(steps=row.steps, **row.optimizer)
  algorithm = make_algorithm(**row.arguments)
  return Training(algorithm, optimizer, row.steps, row.batch, row.evaluate_every)


def make_stages(config: ConfigDict, folder: Path) -> dict[str, Stage]:
  """Every stage of the run. A policy builds on the judge, and the judge on SFT."""
  plain = json.loads(config.to_json_best_effort())
  shared = {name: plain[name] for name in ('seed', 'data', 'model')}
  path = shared['data'].get('path')
  if path:
    shared['file'] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
  sft = shared | {'sft': plain['sft']}
  judge = sft | {'preference_model': plain['preference_model']}
  settings = {'sft': sft, 'preference_model': judge}
  settings |= {name: judge | {'policy': row} for name, row in plain['policies'].items()}
  settings['tournament'] = judge | {name: plain[name] for name in ('policies', 'tournament')}

  def stage(name):
    text = json.dumps(settings[name], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(name.encode()))
    return Stage(name, key, folder / f'{name}-{digest}', settings[name])

  return {name: stage(name) for name in settings}


def _lookup(module, name: str, field: str) -> Callable:
  """The function of that name in a module, or a sentence that lists those there are."""
  if not hasattr(module, name):
    raise UserError(f"{field}: there is no '{name}' in {module.__name__}.")
  return getattr(module, name)
