"""Kills runs, damages their files, fills their disks, mistypes commands, plants keys; counts ends.

python benchmarks/chaos.py                           # at full length, as make chaos
python benchmarks/chaos.py --only=damage             # one part
python benchmarks/chaos.py --only=damage --number=17 # one case, with what the run printed

Needs Linux; small disks need root. Writes each part to benchmarks/results/chaos.json when it ends.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import environments  # noqa: E402

from tests.chaos import cases, command_lines, runs  # noqa: E402
from tests.chaos.cases import FAULTS, IDENTICAL, PARTS, Case  # noqa: E402
from tests.chaos.small_disk import can_mount  # noqa: E402
from tests.chaos.toy import KINDS  # noqa: E402

COUNTS = {'kills': 100, 'damage': 60, 'disks': 20, 'lines': 1_000}
KEYS = 'tests/judges/test_keys.py'
RESULTS = ROOT / 'benchmarks' / 'results' / 'chaos.json'


def parse_arguments() -> argparse.Namespace:
  """The flags of the command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  for part, count in COUNTS.items():
    parser.add_argument(f'--{part}', type=int, default=count, help=f'number of {part}')
  parser.add_argument('--seed', type=int, default=0, help='of all cases')
  parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='runs at a time')
  parser.add_argument('--only', choices=(*COUNTS, 'keys'), help='this part alone')
  parser.add_argument('--number', type=int, help='this case alone; nothing is stored')
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
      done = sum(case.kills for case in found) if part == 'kills' else len(found)
      print(f'{part}: {done} of {count}', file=sys.stderr, flush=True)
      if done >= count:
        return found


def batches_of(size: int) -> Iterator[range]:
  """0 .. size - 1, size .. 2 size - 1, and so on."""
  return (range(first, first + size) for first in itertools.count(step=size))


def summarise(rows: list[Case]) -> dict:
  """Number of cases and kills, outcomes, and the faults."""
  return {
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


def run_lines(count: int, seed: int) -> dict:
  """Command lines, most of them wrong: how many are accepted, and refused in one sentence."""
  outcomes, faults, slowest = Counter(), [], 0.0
  for line in command_lines.generate(count, seed):
    try:
      ending = command_lines.run(line)
    except Exception as error:  # what the command would print as a traceback
      faults.append({'line': line, 'fault': f'{cases.TRACEBACK}: {error!r}'})
      continue
    slowest = max(slowest, ending.seconds)
    outcomes[cases.SENTENCE if ending.status == command_lines.REFUSED else 'accepted'] += 1
    if ending.fault():
      faults.append({'line': line, 'fault': ending.fault()})
  return {'cases': count, 'outcomes': dict(outcomes), 'slowest_s': slowest, 'faults': faults}


def run_keys(folder: Path) -> dict:
  """Runs that fail with a key at hand, each by a test that looks for it in all that is written."""
  report = folder / 'keys.xml'
  command = [sys.executable, '-m', 'pytest', '-q', '-n0', KEYS, f'--junitxml={report}']
  subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
  tests = list(ElementTree.parse(report).iter('testcase'))
  faults = [{'test': it.get('name')} for it in tests if it.find('failure') is not None]
  kept = len(tests) - len(faults)
  return {'cases': len(tests), 'outcomes': {'key not found': kept}, 'faults': faults}


def format_table(summary: dict) -> str:
  """A line for each part."""
  lines = []
  for part, row in summary.items():
    counts = ', '.join(f'{count} {name}' for name, count in row['outcomes'].items())
    kills = f', {row["kills"]} kills' if row.get('kills') else ''
    faults = len(row['faults'])
    lines.append(f'{part:>8}: {row["cases"]} cases{kills}: {counts}; {faults} faults')
  return '\n'.join(lines)


def store(part: str, summary: dict, seed: int, seconds: float) -> dict:
  """Replaces a part of the results; returns all of them."""
  stored = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {'parts': {}}
  stored['machine'] = environments.machine()
  stored['parts'][part] = {'seed': seed, 'minutes': round(seconds / 60, 1), **summary}
  RESULTS.write_text(json.dumps(stored, indent=2) + '\n')
  return stored['parts']


def main() -> int:
  """Runs all parts, stores each, and prints the table; the status is 1 if there are faults."""
  chosen = parse_arguments()
  os.environ |= runs.environment(ROOT / '.cache' / 'chaos')
  warnings.filterwarnings('ignore', message='Sharding info not provided')
  parts = [chosen.only] if chosen.only else [*COUNTS, 'keys']
  if 'disks' in parts and not can_mount():
    print('Only root can mount small disks; that part is left out.')
    parts.remove('disks')
  with tempfile.TemporaryDirectory() as name:
    folder, uncut, found = Path(name), {}, {}
    if set(parts) & PARTS.keys():
      runs.run_uncut(folder / 'first', tuple(KINDS))  # compiles, which shifts moments
      uncut = runs.run_uncut(folder / 'uncut', tuple(KINDS))
    if chosen.number is not None:
      print(PARTS[chosen.only](chosen.seed, chosen.number, folder / 'case', uncut))
      return 0
    for part in parts:
      since = time.monotonic()
      if part == 'keys':
        summary = run_keys(folder)
      elif part == 'lines':
        summary = run_lines(chosen.lines, chosen.seed)
      else:
        count = getattr(chosen, part)
        summary = summarise(run_part(part, count, chosen.seed, chosen.jobs, folder, uncut))
      stored = store(part, summary, chosen.seed, time.monotonic() - since)
      found[part] = stored[part]
      print(format_table({part: summary}), flush=True)
  print(f'\n{format_table(stored)}')
  return int(any(row['faults'] for row in found.values()))


if __name__ == '__main__':
  sys.exit(main())
