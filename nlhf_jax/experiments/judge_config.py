"""Reads what a config says of judges: their names, and their sections.

A judge is written as a name of the registry, as FILE.py:function or module:function, or as RULE(A,
B, ...), a combination of others. In tables, in files and in the rest of the program it has its
name: that of the function; of a combination, the names of its rule and its judges, joined by `_`.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from nlhf_jax.errors import UserError
from nlhf_jax.games.robust import WORST_CASE
from nlhf_jax.judges.combined import MAXMIN, PARAMETERS, RULES, Combination
from nlhf_jax.judges.kinds import ExternalJudge, ExternalKind
from nlhf_jax.judges.own_function import WRITTEN, load_function, make_kind
from nlhf_jax.judges.registry import BY_STAGE, EXTERNAL, NAMES
from nlhf_jax.structs import Params
from nlhf_jax.training import interrupts

COMBINED = re.compile(r'(\w+)\((.*)\)', re.DOTALL)
WORST = ('min', 'max', 'worst')
# What results, files, stages and the settings that determine a stage are named by, besides judges.
RESERVED = (
  *('config', 'data', 'results', 'player', 'trained_by', 'sft', 'tournament', 'exploitability'),
  *('seed', 'model', 'file', 'policy', 'unfinished', 'entered', 'by', 'parameter', 'judges'),
  *('held_apart', 'exploiter', *BY_STAGE),
)


class ConfiguredJudges(NamedTuple):
  """The judges that can be used in a config, besides the oracle, by their names.

  Attributes:
    external: those of the registry, and the user's functions.
    combined: combinations of other judges.
  """

  external: Mapping[str, ExternalKind]
  combined: Mapping[str, Combination]

  @property
  def names(self) -> tuple[str, ...]:
    """All names, those of the registry first."""
    return (*NAMES, *(name for name in self.external if name not in EXTERNAL), *self.combined)

  def parts(self, name: str) -> tuple[str, ...]:
    """The judges that one is combined from; a judge of its own is its only part."""
    return self.combined[name].judges if name in self.combined else (name,)

  def members(self, used: Collection[str | None]) -> set[str]:
    """The judges among `used`, and those that they are combined from; no combinations."""
    return {part for name in used if name for part in self.parts(name)}


# --- Names ---


def split_judges(text: str) -> list[str]:
  """The judges of a list, as they are written; commas within parentheses do not part them."""
  parts, depth = [''], 0
  for letter in text:
    depth += (letter == '(') - (letter == ')')
    if letter == ',' and depth <= 0:
      parts.append('')
    else:
      parts[-1] += letter
  return [part.strip() for part in parts]


def judge_name(written: str) -> str:
  """The name of a judge, from how it is written in a config."""
  combined = COMBINED.fullmatch(written.strip())
  if combined:
    return '_'.join([combined[1], *map(judge_name, split_judges(combined[2]))])
  return written.strip().rpartition(':')[2]


def selecting_judge(config: ConfigDict) -> list[str]:
  """The judge that selects the best of n responses of SFT, if the tournament has such an entry."""
  return [config.tournament.best_of_judge] if config.tournament.best_of else []


def used_judges(config: ConfigDict) -> set[str]:
  """The judges of the tournament and of the policies, and those that they are combined from.

  The judge that selects the best of n, and the kind of one that is held apart, are among them.
  """
  written = [*split_judges(config.judges), *(row.judge for row in config.policies.values())]
  written += [*selecting_judge(config), *[config.held_apart] * bool(config.held_apart)]
  return find_judges(config).members(set(map(judge_name, written)))


def find_judges(config: ConfigDict) -> ConfiguredJudges:
  """The judges of a config; functions of the user are loaded.

  Raises:
    UserError: if a function cannot be used, two judges have one name, or judges cannot be combined.
  """
  external, combined, functions = dict(EXTERNAL), {}, {}
  for field, written in _written_judges(config):
    combination = COMBINED.fullmatch(written)
    parts = split_judges(combination[2]) if combination else [written]
    if combination:
      combined[judge_name(written)] = _make_combination(config, field, combination[1], parts)
    for part in parts:
      if ':' not in part:
        continue
      function, name = load_function(part), judge_name(part)
      if name in (*NAMES, *RESERVED, 'oracle') or name in config.get('policies', {}):
        raise UserError(
          f"{field}: the function of '{part}' has a name that is taken; rename the function."
        )
      if functions.setdefault(name, function).call is not function.call:
        raise UserError(
          f"{field}: two judges are called '{name}', '{functions[name].written}' and '{part}'; "
          'rename one of the functions.'
        )
      external[name] = make_kind(functions[name])
  for name in combined:
    if name in external or name in config.get('policies', {}):
      raise UserError(f"config.judges: a combination is called '{name}'; choose another name.")
  return ConfiguredJudges(external, combined)


def _written_judges(config: ConfigDict) -> Iterator[tuple[str, str]]:
  """(field, judge as written) of the tournament and of all policies."""
  yield from ((f"config.judges='{config.judges}'", it) for it in split_judges(config.judges))
  for name, row in config.policies.items():
    yield f"config.policies.{name}.judge='{row.judge}'", row.judge.strip()


def _make_combination(config: ConfigDict, field: str, by: str, judges: list[str]) -> Combination:
  if by in WORST:
    raise UserError(f'{field}: {WORST_CASE}; use one of {", ".join(RULES)}, or {MAXMIN}.')
  if by not in (*RULES, MAXMIN):
    raise UserError(f"{field}: there is no '{by}'; combine judges by {', '.join(RULES)}.")
  names = tuple(map(judge_name, judges))
  if len(set(names)) < max(2, len(names)):
    raise UserError(f"{field}: '{by}' needs at least two judges, each of them once.")
  for written, name in zip(judges, names, strict=True):
    if ':' not in written and name not in (*NAMES, 'oracle'):
      raise UserError(
        f"{field}: '{written}' cannot be combined; use {', '.join(NAMES)}, oracle, or {WRITTEN}."
      )
  return Combination(by, names, config.combined[PARAMETERS[by]] if by in PARAMETERS else None)


# --- Settings ---


def make_external(config: ConfigDict, name: str, folder: Path) -> Callable[[], ExternalJudge]:
  """A function that makes an external judge, which may store files in the folder."""
  kind = find_judges(config).external[name]
  return partial(kind.make, read_section(config, kind), folder, interrupts.requested)


def external_settings(config: ConfigDict, name: str) -> object:
  """The settings that determine the verdicts of an external judge, as plain data.

  Raises:
    UserError: if a setting cannot be used.
  """
  kind = find_judges(config).external[name]
  return kind.settings(read_section(config, kind))


def external_shapes(config: ConfigDict, name: str) -> Params | None:
  """The shapes of the parameters of an external judge, if it has any."""
  kind = find_judges(config).external[name]
  return kind.shapes(read_section(config, kind)) if kind.shapes else None


def judge_settings(
  config: ConfigDict, used: Collection[str | None], trained: Mapping[str, dict]
) -> dict[str, object]:
  """Judge -> the settings that determine its payoff, as plain data; without an oracle.

  Args:
    config: of the experiment.
    used: the names of judges.
    trained: name -> settings, of those that are trained in the run.
  """
  judges = find_judges(config)
  found = {name: trained[name] for name in used if name in trained}
  for name in used:
    if name in judges.external:
      found[name] = external_settings(config, name)
    if name in judges.combined:
      rule = judges.combined[name]
      parts = judge_settings(config, rule.judges, trained)
      found[name] = {'by': rule.by, 'parameter': rule.parameter, 'judges': rule.judges, **parts}
  return found


def read_section(config: ConfigDict, kind: ExternalKind) -> Mapping[str, Any]:
  """The settings of an external judge, empty if it has none."""
  return config[kind.section].to_dict() if kind.section else {}


def network_sections(config: ConfigDict) -> dict[str, Mapping[str, Any]]:
  """Stage -> settings of the judge that it trains."""
  return {stage: config[stage].to_dict() for stage in BY_STAGE}
