"""Reads the config of an evaluation: its entries, prompts, judges and benchmarks."""

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from nlhf_jax.data import examples
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks.benchmark import Benchmark, find_references
from nlhf_jax.evaluation.benchmarks.benchmark_registry import BENCHMARKS, make_benchmarks
from nlhf_jax.evaluation.response_files import FiledResponses
from nlhf_jax.experiments.data_config import find_oracle
from nlhf_jax.experiments.evaluate.best_of_entries import selecting_judges
from nlhf_jax.experiments.evaluate.entries import FIELD, make_entries
from nlhf_jax.experiments.judge_config import (
  external_settings,
  find_judges,
  make_external,
)
from nlhf_jax.experiments.language import config as language_config
from nlhf_jax.experiments.sections import Section, check, language_sections
from nlhf_jax.experiments.specs import BestOf, Entry, EvaluateExperiment, LanguageExperiment
from nlhf_jax.judges.registry import STAGES
from nlhf_jax.judges.remote import configure_chat_client, require_model
from nlhf_jax.ranges import AtLeastOne, BelowOne, Count
from nlhf_jax.sampling.token import Filters
from nlhf_jax.storage import json_lines
from nlhf_jax.training import interrupts


class EntrySettings(NamedTuple):
  """Response length in tokens, and the error level of early stopping; 0 disables it."""

  length: AtLeastOne
  early_stopping: BelowOne


class HarnessSettings(NamedTuple):
  """The maximum number of questions per task; 0 for all."""

  limit: Count


def make_experiment(config: ConfigDict, name: str, folder: Path) -> EvaluateExperiment:
  """The experiment that a config describes; stages of its judges are stored in `folder`.

  Raises:
    UserError: if a setting or the data cannot be used.
  """
  check(evaluate_sections(config))
  section = config.tournament
  if section.best_of:
    raise UserError(
      f'config.tournament.best_of={section.best_of} is for runs that train; name an entry '
      f'best_of({section.best_of}, DIR, judge={section.best_of_judge}) in {FIELD}.'
    )
  if config.policies:
    raise UserError('config.policies must be empty: an evaluation trains nothing but judges.')
  benchmarks = make_benchmarks({benchmark: config[benchmark].to_dict() for benchmark in BENCHMARKS})
  judges_only = bool(benchmarks) and not any(one.needs_policies for one in benchmarks)
  entries = make_entries(config, find_references(benchmarks), folder, optional=judges_only)
  if section.early_stopping and len(entries) < 2:
    raise UserError(
      f'config.tournament.early_stopping={section.early_stopping} needs two policies in {FIELD}; '
      'leave it at 0.'
    )
  prompts = limit_prompts(make_prompts(config, entries, benchmarks), section.prompts)
  selectors = selecting_judges(entries)
  if selectors and not prompts:
    raise UserError(
      f'{FIELD}: best_of selects responses to the prompts of a tournament, and there are none; '
      'name a file in config.prompts.path.'
    )
  if benchmarks and jax.process_count() > 1:
    raise UserError(
      f'config.{benchmarks[0].name}: with --cluster only the tournament is evaluated; leave the '
      'benchmark out here, and run it in one process.'
    )
  check_generators(benchmarks, entries)
  judging = [benchmark.name for benchmark in benchmarks if benchmark.needs_judges]
  panel, known = make_judges(config) if prompts or judging else [], find_judges(config)
  judges = [*dict.fromkeys(part for name in panel for part in known.parts(name))]
  lacking = [one.name for one in benchmarks if one.needs_judges and not one.has_verdicts]
  if lacking and not panel:
    raise UserError(
      f'config.judges is empty, but config.{lacking[0]} evaluates judges; name some, as '
      'learned,pairrm.'
    )
  used = list(dict.fromkeys([*judges, *selectors]))
  trained = make_trained(config, used, name, folder)
  chat = any(benchmark.needs_chat_judge for benchmark in benchmarks)
  if chat:
    require_model(config.remote.to_dict())
  make_chat_judge = functools.partial(
    configure_chat_client, config.remote.to_dict(), folder, interrupts.requested
  )
  return EvaluateExperiment(
    name=name,
    seed=config.seed,
    entries=entries,
    prompts=prompts,
    judges={judge: judge_digest(config, judge, trained) for judge in judges},
    selectors={judge: judge_digest(config, judge, trained) for judge in selectors},
    trained=trained,
    oracle=find_oracle(config),
    external={
      judge: make_external(config, judge, folder) for judge in used if judge in known.external
    },
    panel=panel,
    combined=known.combined,
    length=section.length,
    batch=section.batch,
    filters=Filters(**section.filters),
    early_stopping=section.early_stopping,
    benchmarks=benchmarks,
    chat_judge=config.remote.model,
    make_chat_judge=make_chat_judge if chat else None,
  )


def evaluate_sections(config: ConfigDict) -> Iterator[Section]:
  """The sections of a config of this kind, with the declarations of their ranges."""
  yield from language_sections(config)
  yield Section(EntrySettings, config.tournament, 'config.tournament')
  yield Section(HarnessSettings, config.harness, 'config.harness')


def check_generators(benchmarks: Sequence[Benchmark], entries: Mapping[str, Entry]) -> None:
  """Raises `UserError` if fewer entries can generate answers than a benchmark needs."""
  count = sum(not isinstance(entry, FiledResponses | BestOf) for entry in entries.values())
  for benchmark in benchmarks:
    if count < benchmark.min_generators:
      raise UserError(
        f'config.{benchmark.name}: {count} entries of {FIELD} are models, which can answer its '
        'questions (files of responses cannot, nor can best_of); name at least '
        f'{benchmark.min_generators}.'
      )


def make_judges(config: ConfigDict) -> list[str]:
  """Names of the judges; there may be none, if only benchmarks without judges are run.

  Raises:
    UserError: if one is to be held apart, which only a run that trains policies can do.
  """
  if config.held_apart:
    raise UserError(
      f"config.held_apart='{config.held_apart}': an evaluation trains no policies; leave it empty, "
      'and name the kind in config.judges, with config.data.part for half of the prompts.'
    )
  if config.judges:
    return language_config.make_panel(config)
  return ['oracle'] if find_oracle(config) else []


def make_trained(
  config: ConfigDict, judges: Sequence[str], name: str, folder: Path
) -> LanguageExperiment | None:
  """The experiment that trains the learned judges, or loads those that are trained already."""
  learned = [judge for judge in judges if judge in STAGES]
  if not learned:
    return None
  of_judges = copy.deepcopy(config)
  of_judges.judges = ','.join(learned)
  return language_config.make_experiment(of_judges, name, folder)


def judge_digest(config: ConfigDict, judge: str, trained: LanguageExperiment | None) -> str:
  """A digest of everything that determines the preferences of a judge."""
  if judge in STAGES:
    return trained.stages[STAGES[judge]].folder.name.rpartition('-')[2]
  external = judge in find_judges(config).external
  settings = external_settings(config, judge) if external else 'the embedded task'
  return json_lines.json_digest(settings)


def make_prompts(
  config: ConfigDict, entries: Mapping[str, Entry], benchmarks: Sequence[Benchmark]
) -> list[str]:
  """The prompts that all files of responses have in common, without repetition.

  They come from `config.prompts.path`, else from the reference outputs of a benchmark, else from
  the first file of responses. The list is empty if benchmarks run without a tournament.

  Raises:
    UserError: if there is no source of prompts, none is left, or one is a conversation.
  """
  filed = {name: entry for name, entry in entries.items() if isinstance(entry, FiledResponses)}
  section, references = config.prompts, find_references(benchmarks)
  if section.path:
    prompts = read_prompts(section)
  elif references:
    prompts = [row['instruction'] for row in references]
  elif filed:
    prompts = list(next(iter(filed.values())).responses)
  elif benchmarks and (not config.judges or any(one.needs_judges for one in benchmarks)):
    return []
  else:
    raise UserError(
      'config.prompts.path is empty; name a file of prompts for the tournament, or leave '
      f'config.judges empty and configure a benchmark ({", ".join(BENCHMARKS)}).'
    )
  talk = next((prompt for prompt in prompts if not isinstance(prompt, str)), None)
  if talk:
    raise UserError(
      f'config.prompts.path: a prompt is a conversation (it ends with {talk[-1].content!r:.60}); '
      'remove it, because a tournament compares responses to single prompts.'
    )
  return common_prompts(list(dict.fromkeys(prompts)), filed)


def common_prompts(prompts: Sequence[str], filed: Mapping[str, FiledResponses]) -> list[str]:
  """The prompts to which every file has a response; prints how many are dropped on either side.

  Raises:
    UserError: if none is left.
  """
  missing = {
    name: [prompt for prompt in prompts if prompt not in one.responses]
    for name, one in filed.items()
  }
  notes = [
    f"'{name}' has no response to {len(lacking)} of {len(prompts)}, such as {lacking[0]!r:.80}"
    for name, lacking in missing.items()
    if lacking
  ]
  dropped = set().union(*missing.values())
  common = [prompt for prompt in prompts if prompt not in dropped]
  if not common:
    raise UserError(
      f'{FIELD}: no prompt has a response in every file ({"; ".join(notes)}); name files of '
      'responses to the same prompts.'
    )
  known = set(prompts)
  for name, one in filed.items():
    more = [prompt for prompt in one.responses if prompt not in known]
    if more:
      print(
        f"'{name}' has {len(more)} responses to other prompts, such as {more[0]!r:.80}; not used."
      )
  if notes:
    print(f'{len(common)} prompts have a response in every file, and are used; {"; ".join(notes)}.')
  return common


def limit_prompts(prompts: list[str], most: int) -> list[str]:
  """The first `most` prompts; prints a note if there are more."""
  if len(prompts) > most:
    print(f'The first {most} of {len(prompts)} prompts are used (config.tournament.prompts).')
  return prompts[:most]


def read_prompts(section: ConfigDict) -> list:
  """The prompts of the section `prompts`."""
  try:
    return [record.prompt for record in examples.read_examples(**section)]
  except UserError as error:
    # The messages of the reader name settings of the section `data`.
    raise UserError(str(error).replace('config.data.', 'config.prompts.')) from None
