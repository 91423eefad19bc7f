"""What the documentation says of a run, beside what a run wrote."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from docs import generate
from nlhf_jax.storage import json_lines

ROOT = Path(__file__).parents[1]
# Parts of a work directory that stand in the page's first table, and locks.
ELSEWHERE = re.compile(r'stages|programs|\..*|.*\.lock')


def undescribed(workdir: Path, kind: str) -> set[str]:
  """Files of a finished run, its metrics and numbers in its results, that no page describes."""
  found = set(undescribed_results(json_lines.read_json(workdir / 'results.json')))
  if (workdir / 'metrics.jsonl').exists():
    found |= undescribed_metrics(json_lines.read(workdir / 'metrics.jsonl'))
  return found | undescribed_files(workdir, kind.replace('_', ' '))


def undescribed_metrics(records: list[Mapping]) -> set[str]:
  """Names of learning curves without a description, those of a judge or a group in general."""
  described = {name for name in names() if '.' not in name}
  found = {name for record in records for name in record}
  general = {name: re.sub('_by_.*', '_by_JUDGE', name) for name in found}
  general = {
    name: re.sub('^(weight|payoff)_of_.*', r'\1_of_GROUP', text) for name, text in general.items()
  }
  return {name for name in found if not {name, general[name]} & described}


def undescribed_results(results: Mapping) -> Iterator[str]:
  """Paths in `results.json` without a description; a word in capitals stands for any name."""
  patterns = [name.split('.') for name in names()]
  for path in paths(results):
    if not any(matches(pattern, path) for pattern in patterns):
      yield '.'.join(path)


def names() -> list[str]:
  """The names that the page of metrics describes; one of several, as `low, high`, is each."""
  found = []
  for rows in generate.DESCRIPTIONS['metrics'].values():
    for name in rows:
      before, dot, last = name.rpartition('.')
      found += [f'{before}{dot}{one}' for one in last.split(', ')]
  return found


def paths(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
  """The paths of all numbers and texts; elements of a list share one."""
  if isinstance(value, Mapping):
    for name, part in value.items():
      yield from paths(part, (*path, name))
  elif isinstance(value, list) and value and isinstance(value[0], Mapping):
    yield from set().union(*(paths(part, path) for part in value))
  else:
    yield path


def matches(pattern: list[str], path: tuple[str, ...]) -> bool:
  """Whether a description is of this path, or of all below a part of it."""
  pairs = zip(pattern, path, strict=False)
  return len(pattern) <= len(path) and all(one == name or one.isupper() for one, name in pairs)


def undescribed_files(workdir: Path, kind: str) -> set[str]:
  """Files and folders of a work directory that docs/files.md has not in this kind of run."""
  text = (ROOT / 'docs' / 'files.md').read_text()
  table = text[text.index('## Work directory') : text.index('## Stages')]
  rows = re.findall(r'^\| (`.*?) \| (.*?) \|', table, re.M)
  known = [
    re.sub('[A-Z]+', '.*', re.escape(name.partition('/')[0]).replace(r'\*', '.*'))
    for files, kinds in rows
    if kinds == 'all' or kinds.startswith('with') or kind in kinds.split(', ')
    for name in re.findall(r'`(.*?)`', files)
  ]
  present = {path.name for path in workdir.iterdir() if not ELSEWHERE.fullmatch(path.name)}
  return {name for name in present if not any(re.fullmatch(one, name) for one in known)}
