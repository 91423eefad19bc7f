"""Entries such as `best_of(16, DIR, judge=pairrm)`: the best of n responses of a model."""

import copy
import re
import zlib
from collections.abc import Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks.benchmark import EvaluatedPolicy
from nlhf_jax.evaluation.best_of_responses import (
  Compare,
  Selection,
  describe_selection,
  select_responses,
)
from nlhf_jax.experiments.data_config import find_oracle
from nlhf_jax.experiments.language.config import make_panel
from nlhf_jax.experiments.specs import BestOf, Entry
from nlhf_jax.games.best_of_n import RULES, check_knockout
from nlhf_jax.judges.registry import NAMES
from nlhf_jax.reporting import formatting

EXAMPLE = 'best_of(16, DIR, judge=pairrm)'
ITEM = re.compile(r'(?:best_of\([^()]*\)|[^,])+')  # commas between parentheses do not end it


class BestOfCall(NamedTuple):
  """What an entry says: n responses of `what`, the judge that selects, and its rule."""

  n: int
  what: str
  judge: str
  rule: str


def split_entries(text: str) -> list[str]:
  """The items of `config.entries`, which commas separate."""
  return [item.strip() for item in ITEM.findall(text) if item.strip()]


def parse_best_of(item: str, field: str) -> tuple[str, BestOfCall] | None:
  """The name, or '', and the call of an item `NAME=best_of(...)`; None if it is no such item.

  Raises:
    UserError: if the call is not complete, or a number or rule in it is wrong.
  """
  found = re.fullmatch(r'(?:([^=(]*)=)?\s*best_of\((.*?)(\)?)', item)
  if not found:
    return None
  name, inner, closed = found[1] or '', found[2], found[3]
  parts = [part.strip() for part in inner.split(',')]
  named = dict(part.split('=', 1) for part in parts[2:] if '=' in part)
  complete = closed and len(parts) == 2 + len(named) and parts[0].isdecimal() and parts[1]
  if not complete or 'judge' not in named or named.keys() - {'judge', 'by'}:
    raise UserError(f"{field}: '{item}' must be written as {EXAMPLE}, with by=RULE if you like.")
  call = BestOfCall(int(parts[0]), parts[1], named['judge'], named.get('by', RULES[0]))
  if call.rule not in RULES:
    raise UserError(f"{field}: '{item}': by={call.rule} must be one of {', '.join(RULES)}.")
  if call.n < 2:
    raise UserError(f"{field}: '{item}': the best of {call.n} selects nothing; choose 2 or more.")
  if call.rule == 'knockout':
    try:
      check_knockout(call.n)
    except UserError as error:
      raise UserError(f"{field}: '{item}': {error}") from None
  return name.strip(), call


def check_selecting_judge(config: ConfigDict, judge: str, field: str) -> None:
  """Raises `UserError` if there is no such judge of pairs of texts, or sampling is greedy."""
  if config.tournament.filters.top_k == 1:
    raise UserError(
      f'{field}: best_of needs responses that differ, and config.tournament.filters.top_k=1 '
      'samples only the most likely token; leave it at 0.'
    )
  if judge == 'oracle':
    if not find_oracle(config):
      raise UserError(f"{field}: judge=oracle: only the embedded task has one; use 'learned'.")
    return
  if ':' in judge:
    raise UserError(
      f'{field}: judge={judge}: a function cannot select; use one of {", ".join(NAMES)}.'
    )
  one = copy.deepcopy(config)
  one.judges = judge
  try:
    make_panel(one)
  except UserError as error:
    raise UserError(f'{field}: judge={judge}: {error}') from None


def selecting_judges(entries: Mapping[str, Entry]) -> list[str]:
  """The judges that select, without repetition."""
  found = [entry.judge for entry in entries.values() if isinstance(entry, BestOf)]
  return list(dict.fromkeys(found))


def respond_with_best(
  entry: BestOf,
  policy: EvaluatedPolicy,
  compare: Compare,
  prompts: list[str],
  temperature: float,
) -> Selection:
  """The best of n responses to each prompt.

  The random numbers depend on the entry's name: entries of one model share no candidates, so that
  their win rates are those of independent samples.

  Args:
    entry: how many, and how to select.
    policy: that responds; its name is that of the entry.
    compare: the judge that selects.
    prompts: of the tournament.
    temperature: of sampling.
  """
  first = zlib.crc32(policy.name.encode(errors='replace'))
  conversations = [[{'role': 'user', 'content': prompt}] for prompt in prompts]

  def sample(number):
    return policy.respond(conversations, temperature, (first << 16) + number)

  return select_responses(entry.rule, compare, prompts, sample, entry.n, first)


def describe_best_of(entries: Mapping[str, Entry], selections: Mapping[str, Selection]) -> dict:
  """Entry -> how it was selected, its KL and the bounds, for `results.json`."""
  found = {}
  for name, selection in selections.items():
    entry = entries[name]
    found[name] = describe_selection(entry.n, entry.judge, entry.rule, selection.kl)
    found[name] |= {'judged_pairs': selection.judged, 'missing_verdicts': selection.missing}
  return found


def print_best_of(found: Mapping[str, Mapping], scoring: Mapping[str, str]) -> None:
  """Prints how entries were selected, and which are scored by the judge that selected them."""
  cells = [
    [
      str(row['n']),
      row['judge'],
      row['rule'],
      'not estimated' if row['kl'] is None else f'{row["kl"]:.3f}',
      f'{row["kl_bound"]:.3f}',
      f'{row["win_rate_bound"]:.3f}',
    ]
    for row in found.values()
  ]
  heads = ['n', 'judge', 'rule', 'KL to the model, nats', 'at most', 'win rate at most']
  print(formatting.format_text('\nBest of n:', list(found), heads, cells))
  for name, row in found.items():
    if row['judge'] in scoring:
      print(
        f"  '{name}' was selected by the {row['judge']} judge, which also scores it: that win rate "
        'includes the errors of the judge; name another judge in config.judges.'
      )
    if row.get('missing_verdicts'):
      print(
        f"  '{name}': {row['missing_verdicts']} of {row['judged_pairs']} pairs of candidates have "
        'no verdict, and count as ties.'
      )
