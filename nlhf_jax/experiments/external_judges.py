"""Usage of external judges, summed over all runs of a work directory."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from nlhf_jax import distributed
from nlhf_jax.errors import Interrupted, UserError
from nlhf_jax.judges.kinds import ExternalJudge
from nlhf_jax.judges.remote import ChatClient
from nlhf_jax.reporting import judge_page
from nlhf_jax.storage import json_lines


@contextlib.contextmanager
def recorded_usage(
  workdir: Path, judges: Mapping[str, ExternalJudge | ChatClient]
) -> Iterator[dict[str, dict]]:
  """Yields a dict, and fills it with `record_usage` after the block, also if that is stopped."""
  usage = {}
  try:
    yield usage
  except (Interrupted, UserError):
    record_usage(workdir, judges)
    raise
  usage |= record_usage(workdir, judges)


def record_usage(
  workdir: Path, judges: Mapping[str, ExternalJudge | ChatClient]
) -> dict[str, dict]:
  """Name -> `about`, what the judge is, and `counts` of this run and the earlier ones.

  Counts, if there are any, are stored in `NAME.json` of the work directory. To be called once, when
  the run ends: a killed run is not counted, although its answers are stored.
  """
  usage = {}
  for name, judge in judges.items():
    path, counts = workdir / f'{name}.json', Counter(judge.counts())
    before = json_lines.read_json(path) if json_lines.exists(path) else {}
    if before.get('about') == judge.about:
      counts.update(before['counts'])
    usage[name] = {'about': judge.about, 'counts': dict(counts)}
    if distributed.broadcast_from_first(bool(counts)):
      json_lines.write_json(path, usage[name])
  return usage


def print_usage(usage: Mapping[str, Mapping]) -> None:
  """Prints what each judge is, and its counts."""
  for sentence in judge_page.describe_judges(usage):
    print(sentence)
