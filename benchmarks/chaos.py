"""Kills runs, damages their files and fills their disks, and counts how they end.

python benchmarks/chaos.py                           # at full length, as make chaos
python benchmarks/chaos.py --only=damage --number=17 # one case, with what the run printed

Needs Linux; small disks need root. Writes benchmarks/results/chaos.json.
"""

import argparse
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import environments  # noqa: E402

from tests.chaos import cases, runs  # noqa: E402
from tests.chaos.cases import FAULTS, IDENTICAL, PARTS, Case  # noqa: E402
from tests.chaos.small_disk import can_mount  # noqa: E402
from tests.chaos.toy import KINDS  # noqa: E402

COUNTS = {'kills': 100, 'damage': 60, 'disks': 20}


def parse_arguments() -> argparse.Namespace:
  """The flags of the command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  for part, count in COUNTS.items():
    parser.add_argument(f'--{part}', type=int, default=count, help=f'number of {part}')
  parser.add_argument('--seed', type=int, default=0, help='of all cases')
  parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='runs at a time')
  parser.add_argument('--only', choices=PARTS, help='this part alone; nothing is stored')
  parser.add_argument('--number', type=int, help='this case alone')
  return parser.parse_args()


def run_part(part: str, count: int, seed: int, jobs: int, folder: Path, uncut: dict) -> list[Case]:
  """The cases of a part: `count` of them, or as many as contain `count` kills."""

  def one(number):
    place = folder / part / str(number)
    place.mkdir(parents=True)
    case = PARTS[part](seed, number, place, uncut)
    shutil.rmtree(place)
    if case.outcome != IDENTICAL:
      print(f'{part} {number}, {case.kind}, {case.what}: {case.outcome}', flush=True)
    return case

  found: list[Case] = []
  with ThreadPoolExecutor(jobs) as pool:
    for numbers in batches_of(jobs):
      found += pool.map(one, numbers)
      if (sum(case.kills for case in found) if part == 'kills' else len(found)) >= count:
        return found


def batches_of(size: int) -> Iterator[range]:
  """0 .. size - 1, size .. 2 size - 1, and so on."""
  return (range(first, first + size) for first in itertools.count(step=size))


def summarise(found: dict[str, list[Case]]) -> dict:
  """Part -> number of cases and kills, outcomes, and the faults."""
  return {
    part: {
      'cases': len(rows),
      'kills': sum(case.kills for case in rows),
      'outcomes': dict(Counter(case.outcome for case in rows)),
      'by kind': {
        kind: dict(Counter(case.outcome for case in rows if case.kind == kind)) for kind in KINDS
      },
      'faults': [
        {'number': number, **case._asdict()}
        for number, case in enumerate(rows)
        if case.outcome in FAULTS
      ],
    }
    for part, rows in found.items()
  }


def format_table(summary: dict) -> str:
  """A line for each part."""
  outcomes = (cases.IDENTICAL, cases.SENTENCE, cases.REPORTED, *FAULTS)
  lines = [f'{"":>8}{"cases":>7}{"kills":>7}' + ''.join(f'{name:>12}' for name in outcomes)]
  for part, row in summary.items():
    counts = ''.join(f'{row["outcomes"].get(name, 0):>12}' for name in outcomes)
    lines.append(f'{part:>8}{row["cases"]:>7}{row["kills"]:>7}{counts}')
  return '\n'.join(lines)


def main() -> int:
  """Runs all parts, prints the table, and stores it; the status is 1 if there are faults."""
  chosen, since = parse_arguments(), time.monotonic()
  os.environ |= runs.environment(ROOT / '.cache' / 'chaos')
  warnings.filterwarnings('ignore', message='Sharding info not provided')
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    runs.run_uncut(folder / 'first', tuple(KINDS))  # compiles, which shifts moments
    uncut = runs.run_uncut(folder / 'uncut', tuple(KINDS))
    if chosen.number is not None:
      print(PARTS[chosen.only](chosen.seed, chosen.number, folder / 'case', uncut))
      return 0
    parts = [chosen.only] if chosen.only else list(PARTS)
    if 'disks' in parts and not can_mount():
      print('Only root can mount small disks; that part is left out.')
      parts.remove('disks')
    found = {
      part: run_part(part, getattr(chosen, part), chosen.seed, chosen.jobs, folder, uncut)
      for part in parts
    }
  summary = summarise(found)
  print(f'\n{format_table(summary)}\n{(time.monotonic() - since) / 60:.0f} minutes')
  if not chosen.only:
    stored = {'machine': environments.machine(), 'seed': chosen.seed, 'parts': summary}
    path = ROOT / 'benchmarks' / 'results' / 'chaos.json'
    path.write_text(json.dumps(stored, indent=2) + '\n')
  return int(any(row['faults'] for row in summary.values()))


if __name__ == '__main__':
  sys.exit(main())
