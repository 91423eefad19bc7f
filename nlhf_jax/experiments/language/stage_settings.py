"""The settings that determine the outcome of each stage of a language experiment."""

import json
from collections.abc import Collection, Mapping, Sequence

from ml_collections import ConfigDict

from nlhf_jax.data import sources
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.dialogue_config import conversing, user_settings
from nlhf_jax.experiments.judge_config import (
  find_judges,
  judge_name,
  judge_settings,
  selecting_judge,
)
from nlhf_jax.experiments.specs import Policy, entry_slots
from nlhf_jax.judges.registry import STAGES
from nlhf_jax.sampling.token import UNFILTERED, Filters
from nlhf_jax.storage.hub import fingerprint


def stages_of_judges(used: Collection[str | None]) -> list[str]:
  """The stages that train those judges among `used` that are trained in the run."""
  return [stage for judge, stage in STAGES.items() if judge in used]


def stage_settings(
  config: ConfigDict, policies: Mapping[str, Policy], panel: Sequence[str]
) -> dict[str, dict]:
  """Stage -> the settings that determine it: its own and those of the stages it builds on.

  A policy builds on its judge, if it has one, and judges build on SFT. Settings that affect
  no computation, such as which slots enter the tournament, are left out for a policy.
  """
  plain = json.loads(config.to_json_best_effort())
  if plain['general_preference_model']['scale'] == 1:  # as before there was any
    del plain['general_preference_model']['scale']
  shared = {name: plain[name] for name in ('seed', 'data', 'model')}
  path = shared['data'].pop('path', None)
  if path:  # the content counts, not the location
    shared['file'] = sources.digest(sources.locate_all(path, config.data.split))
  if config.model.hf:
    shared['model']['hf'] = fingerprint(config.model.hf)
  settings = {'sft': shared | {'sft': plain['sft']}}
  used = {*panel, *(policy.judge for policy in policies.values()), *selecting_judge(config)}
  known = find_judges(config)
  dialogue = {'dialogue': user_settings(config)} if conversing(config) else {}
  for model in stages_of_judges(known.members(used)):
    settings[model] = settings['sft'] | {model: plain[model]}
  if config.held_apart:
    section = STAGES[config.held_apart]
    settings['held_apart'] = settings['sft'] | {'held_apart': {section: plain[section]}}
  for name, policy in policies.items():
    row = {field: value for field, value in plain['policies'][name].items() if field != 'entries'}
    if Filters(**row['filters']) == UNFILTERED:  # as before there were any
      del row['filters']
    if row['sampler'] == 'built_in':  # as before there was another
      del row['sampler']
    row['judge'] = judge_name(row['judge'])  # a function counts, not its location
    settings[name] = {**settings['sft']}
    for model in stages_of_judges(known.members({policy.judge})):
      settings[name] |= settings[model]
    settings[name] |= {'policy': row}
    if policy.judge in known.external or policy.judge in known.combined:
      settings[name] |= judge_settings(config, [policy.judge], trained_settings(settings))
    if policy.judge:
      settings[name] |= {'unfinished': config.unfinished}
    settings[name] |= dialogue
  compared = panel_settings(config, panel, settings)
  compared |= {name: settings[name] for name in policies}
  tournament = plain['tournament']
  if not config.tournament.best_of:  # as before there was such an entry
    tournament = {
      name: value for name, value in tournament.items() if not name.startswith('best_of')
    }
  compared |= panel_settings(config, selecting_judge(config), settings)
  entered = {name: row['entries'] for name, row in plain['policies'].items()}
  settings['tournament'] = compared | {
    'tournament': tournament,
    'entered': entered,
    'unfinished': config.unfinished,
    **dialogue,
  }
  return settings


def panel_settings(
  config: ConfigDict, panel: Sequence[str], settings: Mapping[str, dict]
) -> dict[str, object]:
  """Judge of the tournament -> the settings that determine its preferences."""
  return judge_settings(config, panel, trained_settings(settings))


def trained_settings(settings: Mapping[str, dict]) -> dict[str, dict]:
  """Judge -> the settings of the stage that trains it."""
  stages = {**STAGES, 'held_apart': 'held_apart'}
  return {judge: settings[stage] for judge, stage in stages.items() if stage in settings}


def exploiter_settings(
  config: ConfigDict,
  policies: Mapping[str, Policy],
  panel: Sequence[str],
  settings: Mapping[str, dict],
) -> dict[tuple[str, str], dict]:
  """(judge, entry) -> the settings that determine the exploiter of that entry under that judge."""
  if not config.exploiter:
    return {}
  plain = json.loads(config.exploiter.to_json_best_effort())
  exploited = exploited_entries(plain.pop('exploited'), policies)
  trained_by = panel_settings(config, panel, settings)
  dialogue = {'dialogue': user_settings(config)} if conversing(config) else {}
  return {
    (judge, entry): {
      **dialogue,
      'exploiter': plain,
      'unfinished': config.unfinished,
      'judge': judge,
      'trained_by': trained_by.get(judge),
      'player': settings[name],
      'slot': slot,
    }
    for judge in panel
    if judge != 'held_apart'
    for entry, (name, slot) in exploited.items()
  }


def exploited_entries(names: str, policies: Mapping[str, Policy]) -> dict[str, tuple[str, str]]:
  """The entries that are exploited, as `entry_slots`; names are separated by commas.

  Raises:
    UserError: if a name is none of the entries.
  """
  entries = entry_slots(policies)
  wanted = [name.strip() for name in names.split(',')] if names else list(entries)
  for name in wanted:
    if name not in entries:
      raise UserError(
        f"config.exploiter.exploited='{names}': there is no entry '{name}'; name some of "
        f'{", ".join(entries)}, or leave it empty for all.'
      )
  return {name: entries[name] for name in wanted}


def exploiter_measurement(
  config: ConfigDict, panel: Sequence[str], settings: Mapping[str, dict]
) -> dict[str, object]:
  """The settings that determine the win rates of a trained exploiter."""
  plain = json.loads(config.to_json_best_effort())
  measured = {field: plain['tournament'][field] for field in ('prompts', 'batch')}
  return measured | {'panel': list(panel), 'judges': panel_settings(config, panel, settings)}
