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
  """Yields a dict; after the block, also an interrupted one, `record_usage` fills it.

  If the block fails, the usage is printed: it may say why a judge has no verdicts.
  """
  usage = {}
  try:
    yield usage
  except Interrupted:
    record_usage(workdir, judges)
    raise
  except UserError:
    print_usage(record_usage(workdir, judges))
    raise
  usage |= record_usage(workdir, judges)


def record_usage(
  workdir: Path, judges: Mapping[str, ExternalJudge | ChatClient]
) -> dict[str, dict]:
  """Name -> `about`, a description, and `counts`, summed over this run and earlier ones.

  `last_failure` says why a judge last had no verdict, if that ever happened.
  Counts, if there are any, are stored in `NAME.json` of the work directory. Call this once, when
  the run ends: a killed run is not counted, although its answers are stored.
  """
  usage = {}
  for name, judge in judges.items():
    path, counts = workdir / f'{name}.json', Counter(judge.counts())
    failure = judge.last_failure()
    before = json_lines.read_sealed(path) or {}
    if before.get('about') == judge.about:
      counts.update(before['counts'])
      failure = failure or before.get('last_failure', '')
    usage[name] = {'about': judge.about, 'counts': dict(counts)}
    if failure:
      usage[name]['last_failure'] = failure
    if distributed.broadcast_from_first(bool(counts)):
      json_lines.write_sealed(path, usage[name])
  return usage


def print_usage(usage: Mapping[str, Mapping]) -> None:
  """Prints the description and the counts of each judge."""
  for sentence in judge_page.describe_judges(usage):
    print(sentence)
