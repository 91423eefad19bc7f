"""Reads the config of an experiment that trains language models."""

import copy
from collections.abc import Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict

from nlhf_jax.algorithms.algorithm import needs_judge
from nlhf_jax.data.dataset import parse_part
from nlhf_jax.errors import UserError
from nlhf_jax.experiments import dialogue_config, sections
from nlhf_jax.experiments.data_config import (
  check_enough,
  find_oracle,
  make_corpus,
  print_clamped,
)
from nlhf_jax.experiments.judge_config import (
  RESERVED,
  find_judges,
  judge_name,
  make_external,
  network_sections,
  selecting_judge,
  split_judges,
)
from nlhf_jax.experiments.language.opponent_config import check_opponents, make_opponent
from nlhf_jax.experiments.language.policy_judge import (
  FEEDBACK,
  JUDGES,
  check_combination,
  check_judges_of_texts,
  make_policy_judge,
)
from nlhf_jax.experiments.language.stage_settings import (
  exploiter_measurement,
  exploiter_settings,
  stage_settings,
  stages_of_judges,
)
from nlhf_jax.experiments.language.voting_config import make_voting
from nlhf_jax.experiments.memory_limits import check_language
from nlhf_jax.experiments.model_config import check_before_data, make_model
from nlhf_jax.experiments.refinement_config import make_refinement
from nlhf_jax.experiments.sampling_config import (
  is_served,
  make_filters,
  make_server,
  print_filtered,
)
from nlhf_jax.experiments.specs import HeldApart, LanguageExperiment, Policy, Training
from nlhf_jax.experiments.stage_config import make_stage, split_settings
from nlhf_jax.experiments.training_config import check_mesh, make_training
from nlhf_jax.judges.combined import MAXMIN
from nlhf_jax.judges.own_function import WRITTEN
from nlhf_jax.judges.registry import BY_STAGE, NAMES, STAGES
from nlhf_jax.sampling.token import Filters
from nlhf_jax.storage import json_lines

HELD_APART = 'held_apart'
UNFINISHED = ('judged', 'loses')
LEARNED = ('sft', *BY_STAGE)


def check(config: ConfigDict) -> None:
  """Checks numbers, and that sizes fit into this machine, before any work is done.

  Raises:
    UserError: if one is wrong.
  """
  check_settings(config)
  check_language(config)
  check_before_data(config)


def check_settings(config: ConfigDict) -> None:
  """Checks numbers, for whatever machine.

  Raises:
    UserError: if one is wrong.
  """
  sections.check(sections.language_sections(config))
  dialogue_config.check_dialogue(config)
  check_heads(config.model)


def check_heads(model: ConfigDict) -> None:
  """Refuses sizes of attention heads in the section `model` that are incompatible."""
  if model.heads % model.key_heads:
    raise UserError(
      f'config.model.heads={model.heads} must be a multiple of config.model.key_heads='
      f'{model.key_heads}.'
    )
  if model.head_size % 2:
    raise UserError(
      f'config.model.head_size={model.head_size} must be even, for rotary embeddings.'
    )


def make_experiment(config: ConfigDict, name: str, folder: Path) -> LanguageExperiment:
  """Makes the experiment that a config describes; its stages are stored in `folder`.

  Raises:
    UserError: if a setting or the data cannot be used.
  """
  check(config)
  if config.unfinished not in UNFINISHED:
    raise UserError(
      f"config.unfinished='{config.unfinished}' must be one of {', '.join(UNFINISHED)}."
    )
  for field in LEARNED:
    row = BY_STAGE[field].algorithm if field in BY_STAGE else field
    if config[field].algorithm != row:
      raise UserError(f'config.{field}.algorithm={config[field].algorithm} must be {row}.')
  trainings = {field: make_training(config[field], f'config.{field}') for field in LEARNED}
  config, other_half = halve(config)
  policies = make_policies(config)
  exploiter = make_exploiter(config)
  panel, sft, known = make_panel(config), trainings.pop('sft'), find_judges(config)
  check_best_of(config, policies)
  served = any(policy.served for policy in policies.values())
  used = {*panel, *(policy.judge for policy in policies.values()), *selecting_judge(config)}
  used = known.members(used)
  judges = {stage: trainings[stage] for stage in stages_of_judges(used)}
  judges |= {HELD_APART: trainings[STAGES[config.held_apart]]} if config.held_apart else {}
  trained = {'sft': sft} | judges
  trained |= {f'policies.{name}': policy.training for name, policy in policies.items()}
  trained |= {'exploiter': exploiter} if exploiter else {}
  trained = {field: training for field, training in trained.items() if training.steps}
  check_mesh(trained | fitted_to_votes(policies))
  external = {name: make_external(config, name, folder) for name in known.external if name in used}
  corpus = make_corpus(config, folder)
  print_clamped(config, corpus)
  print_filtered(policies)
  dialogue_config.print_trained_judges(config, judges)
  check_enough(config, corpus, {field: training.algorithm for field, training in trained.items()})
  settings = stage_settings(config, policies, panel)
  measurement, _ = split_settings(exploiter_measurement(config, panel, settings))
  model = make_model(config, len(corpus.tokenizer))
  positions = model.sizes.max_positions
  prompts = len(corpus.train.prompts.lengths)
  check_opponents(config, policies, corpus.tokenizer, prompts, positions)
  return LanguageExperiment(
    name=name,
    corpus=corpus,
    model=model,
    response_length=config.data.response_length,
    seed=config.seed,
    stages={name: make_stage(name, it, config.seed, folder) for name, it in settings.items()},
    exploiters={
      pair: make_stage('exploiter', it, config.seed, folder)
      for pair, it in exploiter_settings(config, policies, panel, settings).items()
    },
    sft=sft,
    judges=judges,
    judge_sections=network_sections(config),
    panel=panel,
    policies=policies,
    exploiter=exploiter,
    exploiter_wins=f'wins-{json_lines.json_digest(measurement)}.json',
    tournament_prompts=config.tournament.prompts,
    tournament_batch=config.tournament.batch,
    best_of=config.tournament.best_of,
    best_of_judge=config.tournament.best_of_judge,
    filters=Filters(**config.tournament.filters),
    external=external,
    combined=known.combined,
    curve_prompts=config.curves.prompts,
    held_apart=other_half and make_held_apart(other_half, judges, folder),
    unfinished_loses=config.unfinished == 'loses',
    generation_server=make_server(config, model) if served else None,
    refinement=make_refinement(config, corpus.tokenizer, positions),
    dialogue=dialogue_config.make_dialogue(config, corpus, positions),
  )


def make_policies(config: ConfigDict) -> dict[str, Policy]:
  """The policies of the config, by name.

  Raises:
    UserError: if a setting is wrong, or two entries of the tournament would have one name.
  """
  policies = {name: make_policy(row, name, config) for name, row in config.policies.items()}
  entries = [entry for policy in policies.values() for entry in policy.entries]
  for entry in entries:
    if entries.count(entry) > 1 or entry == 'sft':
      raise UserError(f"config.policies: two entries would be named '{entry}'; rename a policy.")
  return policies


def fitted_to_votes(policies: Mapping[str, Policy]) -> dict[str, Training]:
  """Field of the config -> the training of judges that are fitted to votes."""
  return {
    f'policies.{name}.votes.training': policy.voting.trainings[-1]
    for name, policy in policies.items()
    if policy.voting
  }


def check_best_of(config: ConfigDict, policies: Mapping[str, Policy]) -> None:
  """Raises `UserError` if the tournament cannot have the best of n responses of SFT."""
  section, field = config.tournament, 'config.tournament.best_of'
  if not section.best_of:
    return
  if section.best_of == 1 or section.filters.top_k == 1:
    raise UserError(
      f'{field}={section.best_of} needs two responses or more that differ; raise it, and leave '
      'config.tournament.filters.top_k at 0.'
    )
  if section.best_of_judge not in JUDGES or (
    section.best_of_judge == 'oracle' and not find_oracle(config)
  ):
    raise UserError(
      f"{field}_judge='{section.best_of_judge}' must be one of {', '.join(NAMES)}, or the oracle "
      'of the embedded task.'
    )
  name = f'best_of_{section.best_of}'
  if any(name in policy.entries for policy in policies.values()):
    raise UserError(f"{field}: a policy is named '{name}', as its entry is; rename the policy.")


def halve(config: ConfigDict) -> tuple[ConfigDict, ConfigDict | None]:
  """The config with half of the prompts, and with the others for a judge that is held apart.

  Without such a judge, the config as it is, and None.

  Raises:
    UserError: if the setting is wrong, or the data cannot be split.
  """
  if not config.held_apart:
    return config, None
  if config.held_apart not in STAGES:
    raise UserError(
      f"config.held_apart='{config.held_apart}' must be empty or one of {', '.join(STAGES)}."
    )
  if find_oracle(config):
    raise UserError(
      f"config.held_apart='{config.held_apart}': the embedded task has its oracle for this; leave "
      'it empty.'
    )
  number, count = parse_part(config.data.part)
  halves = copy.deepcopy(config), copy.deepcopy(config)
  for half, shift in zip(halves, (0, count), strict=True):
    half.data.part = f'{number + shift}/{2 * count}'
  return halves


def make_held_apart(config: ConfigDict, judges: Mapping[str, Training], folder: Path) -> HeldApart:
  """The judge that is held apart, from the config with its half of the prompts.

  Raises:
    UserError: if there are too few comparisons.
  """
  corpus = make_corpus(config, folder)
  check_enough(config, corpus, {HELD_APART: judges[HELD_APART].algorithm})
  return HeldApart(STAGES[config.held_apart], corpus.train.comparisons)


def make_panel(config: ConfigDict) -> list[str]:
  """The judges of the tournament: those of `config.judges`, an oracle, and one held apart.

  Raises:
    UserError: if one is unknown, named twice, or weighs groups while a policy trains.
  """
  known = find_judges(config)
  panel = [judge_name(written) for written in split_judges(config.judges)]
  for name in panel:
    if name not in known.names:
      raise UserError(
        f"config.judges='{config.judges}' must be some of {', '.join(NAMES)}, or {WRITTEN}; an "
        'oracle takes part wherever there is one.'
      )
    if name in known.combined:
      check_combination(config, known.combined[name], f"config.judges='{config.judges}'")
      if known.combined[name].by == MAXMIN:
        raise UserError(
          f"config.judges='{config.judges}': '{MAXMIN}' weighs groups while a policy trains; name "
          'the groups instead, whose win rates the page then has.'
        )
    if panel.count(name) > 1:
      raise UserError(f"config.judges='{config.judges}' names '{name}' twice; name it once.")
  oracle, apart = ['oracle'] * bool(find_oracle(config)), [HELD_APART] * bool(config.held_apart)
  return [*oracle, *panel, *apart]


def make_policy(row: ConfigDict, name: str, config: ConfigDict) -> Policy:
  """Makes a policy from its section of `config.policies`.

  Raises:
    UserError: if a setting is wrong, or incompatible with another one.
  """
  field = f'config.policies.{name}'
  if name in (*LEARNED, *JUDGES, *RESERVED):
    raise UserError(f'{field}: a stage or a judge has this name; choose another.')
  if row.algorithm in LEARNED[1:]:
    raise UserError(f"{field}.algorithm: '{row.algorithm}' trains a judge, not a policy.")
  training = make_training(row, field)
  dialogue_config.check_conversing(config, row, field, training.algorithm)
  judge = make_policy_judge(row, field, training, config)
  averages = [slot for slot, rule in training.algorithm.references.items() if rule.kind == 'ema']
  if averages and config.model.weights == 'bfloat16' and not config.model.lora.rank:
    raise UserError(
      f"{field}: its slot '{averages[0]}' is an average, whose updates are too small for "
      "config.model.weights='bfloat16'; use float32, or adapters."
    )
  slots = [slot.strip() for slot in row.entries.split(',')]
  known = ['policy', *training.algorithm.references]
  for slot in slots:
    if slot not in known:
      raise UserError(
        f"{field}.entries: '{slot}' is not a slot of the algorithm; choose from {known}."
      )
  entries = {name if slot == 'policy' else f'{name}_{slot}': slot for slot in slots}
  if row.async_judge and not judge:
    raise UserError(
      f"{field}.async_judge=True: '{row.algorithm}' uses no judge; leave it at False."
    )
  if row.async_judge and jax.process_count() > 1:
    check_judges_of_texts(config, judge, field)
  filters = make_filters(row, field, training.algorithm)
  voting = make_voting(row, field, training) if 'votes' in row else None
  return Policy(
    training,
    judge,
    FEEDBACK[row.feedback],
    entries,
    row.async_judge,
    filters,
    voting,
    served=is_served(row, field, training.algorithm),
    opponent=make_opponent(row, field, config),
  )


def make_exploiter(config: ConfigDict) -> Training | None:
  """The training of exploiters, or None if the config has none.

  Raises:
    UserError: if a setting is wrong.
  """
  if not config.exploiter:
    return None
  training = make_training(config.exploiter, 'config.exploiter')
  dialogue_config.check_conversing(config, config.exploiter, 'config.exploiter', training.algorithm)
  if not needs_judge(training.algorithm) or 'reference' not in training.algorithm.references:
    raise UserError(
      f"config.exploiter.algorithm: '{config.exploiter.algorithm}' does not play against its "
      'reference, which is the policy to exploit; use best_response.'
    )
  return training
