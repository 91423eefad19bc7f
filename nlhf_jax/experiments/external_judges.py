"""Judges from outside: who they are, and what came of them in all runs of a work directory."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from nlhf_jax import distributed
from nlhf_jax.errors import Interrupted, UserError
from nlhf_jax.experiments.judge_config import ExternalJudge
from nlhf_jax.judges.remote import ChatClient
from nlhf_jax.reporting import judge_page
from nlhf_jax.storage import json_lines


@contextlib.contextmanager
def recorded_usage(
  workdir: Path, outside: Mapping[str, ExternalJudge | ChatClient]
) -> Iterator[dict[str, dict]]:
  """Once the block has ended, or was interrupted, what it was given has the judges' accounts."""
  accounts = {}
  try:
    yield accounts
  except (Interrupted, UserError):
    record_usage(workdir, outside)
    raise
  accounts |= record_usage(workdir, outside)


def record_usage(
  workdir: Path, outside: Mapping[str, ExternalJudge | ChatClient]
) -> dict[str, dict]:
  """Name -> `about`, who it is, and `counts` of this run and those before it.

  It is kept in `NAME.json` of the work directory, if anything was counted. Called once, when a run
  ends: what a killed one did is not in it, though its answers are kept.
  """
  accounts = {}
  for name, given in outside.items():
    path, counts = workdir / f'{name}.json', Counter(given.counts())
    before = json_lines.read_json(path) if json_lines.exists(path) else {}
    if before.get('about') == given.about:
      counts.update(before['counts'])
    accounts[name] = {'about': given.about, 'counts': dict(counts)}
    if distributed.of_first(bool(counts)):
      json_lines.write_json(path, accounts[name])
  return accounts


def print_usage(accounts: Mapping[str, Mapping]) -> None:
  """Prints who was asked, and what was counted."""
  for sentence in judge_page.describe_judges(accounts):
    print(sentence)
