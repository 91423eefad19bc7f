"""Reads how the samples that a policy trains on are drawn, and prints where training then ends."""

from collections.abc import Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict

from nlhf_jax.algorithms.algorithm import Algorithm, sampled_mixtures, samples_responses
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.specs import Model, Policy
from nlhf_jax.sampling.token import UNFILTERED, Filters
from nlhf_jax.training.generation_server import KINDS, ServerSettings

SAMPLERS = ('built_in', 'server')


def make_filters(row: ConfigDict, field: str, algorithm: Algorithm) -> Filters:
  """The filters of a policy, from its section `row` of the config, whose name is `field`.

  Raises:
    UserError: if nothing is sampled, the algorithm has a temperature of its own, or its fixed point
      would be another one.
  """
  filters = Filters(**row.filters)
  changed = {
    name: f'{field}.filters.{name}={value}'
    for name, value in filters._asdict().items()
    if value != getattr(UNFILTERED, name)
  }
  if changed and not samples_responses(algorithm):
    raise UserError(
      f"{next(iter(changed.values()))}: '{row.algorithm}' trains on data, and samples nothing; "
      'leave temperature and top_p at 1, and top_k at 0.'
    )
  if 'temperature' in changed and 'temperature' in row.arguments:
    raise UserError(
      f"{changed['temperature']}: '{row.algorithm}' has a temperature of its own for its samples; "
      f'leave this at 1, and set {field}.arguments.temperature.'
    )
  cut = changed.get('top_k') or changed.get('top_p')
  if cut and not algorithm.truncated:
    raise UserError(
      f"{cut}: '{row.algorithm}' learns from its samples, of which top-k and top-p leave some "
      'responses out for ever, so that its fixed point would depend on the start; leave top_k at 0 '
      'and top_p at 1, and set the temperature instead.'
    )
  return filters


def is_served(row: ConfigDict, field: str, algorithm: Algorithm) -> bool:
  """Whether the generation server samples for a policy, from its section `row` of the config.

  Raises:
    UserError: if it cannot.
  """
  if row.sampler not in SAMPLERS:
    raise UserError(f"{field}.sampler='{row.sampler}' must be one of {', '.join(SAMPLERS)}.")
  if row.sampler == 'built_in':
    return False
  where = f"{field}.sampler='server'"
  if not samples_responses(algorithm):
    raise UserError(
      f"{where}: '{row.algorithm}' trains on data, and samples nothing; leave it out."
    )
  mixed = [mixture for mixture in sampled_mixtures(algorithm) if len(mixture) > 1]
  if mixed:
    raise UserError(
      f"{where}: '{row.algorithm}' samples a mixture of {' and '.join(mixed[0])} token by token, "
      'and a server has one model; leave it at built_in, which samples mixtures exactly.'
    )
  if 'votes' in row or jax.process_count() > 1:
    raise UserError(f'{where} works in one process, and without {field}.votes; use built_in.')
  return True


def make_server(config: ConfigDict, model: Model) -> ServerSettings:
  """The settings of the generation server, which samples with this model.

  Raises:
    UserError: if one is missing or wrong.
  """
  settings = ServerSettings(**config.generation_server)
  if settings.kind not in KINDS:
    raise UserError(
      f"config.generation_server.kind='{settings.kind}' must be one of {', '.join(KINDS)}."
    )
  for name in ('url', 'folder'):
    if not getattr(settings, name):
      raise UserError(
        f'config.generation_server.{name} is empty: a policy is sampled by a generation server, '
        'which needs its address (url) and a folder that it reads weights from.'
      )
  if model.lora and not model.source:
    raise UserError(
      f'config.model.lora.rank={model.lora.rank}: a generation server loads adapters of a '
      'pretrained model only; name one in config.model.hf, or set the rank to 0.'
    )
  if model.source and Path(settings.folder).resolve() == model.source.folder.resolve():
    raise UserError(
      f"config.generation_server.folder='{settings.folder}' is the folder of config.model.hf, and "
      'its weights would be replaced by those that are trained; give another folder.'
    )
  return settings


def print_filtered(policies: Mapping[str, Policy]) -> None:
  """Prints where the training of a policy ends whose samples are tempered, or truncated."""
  for name, policy in policies.items():
    filters, field = policy.filters, f'config.policies.{name}.filters'
    if filters.temperature != 1:
      print(
        f'{field}.temperature={filters.temperature:g}: samples, and all log-probabilities of '
        f"'{name}' and of its reference, are those at this temperature; the fixed point of the "
        'algorithm is reached by the tempered policy, so compare it at '
        f'config.tournament.filters.temperature={filters.temperature:g}.'
      )
    if filters.top_k or filters.top_p < 1:
      print(
        f"{field}: '{name}' never samples what top_k={filters.top_k} and top_p={filters.top_p:g} "
        'leave out; its samples, and not the policy, end at the lottery of the other responses, '
        'which depend on the start.'
      )
