"""Bad days of a run: kills, damaged files and full disks, each drawn by a seed and a number.

A case interferes with a run, starts the same command again, and compares what it leaves with what
an uninterrupted run leaves.
"""

import random
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.chaos import damage
from tests.chaos.ends import read_end
from tests.chaos.runs import HANG, Ended, Uncut, differing, run
from tests.chaos.small_disk import small_disk
from tests.chaos.toy import KINDS

KILLS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOST_KILLS = 3  # of one run
# Kinds that store something on the way; the others start again, and read nothing.
STORING = ('language', 'exploiter', 'judges', 'token_game', 'evaluate')

# How a case ends. The last five are faults.
IDENTICAL, SENTENCE, REPORTED = 'identical', 'sentence', 'reported'
SILENT, TRACEBACK, HANGS, CRASH, FULL = 'silent', 'traceback', 'hangs', 'crash', 'no sentence'
FAULTS = (SILENT, TRACEBACK, HANGS, CRASH, FULL)


class Case(NamedTuple):
  """What happened to one run.

  `kills` is how many signals reached it. `outcome` is IDENTICAL if nothing differs at the end;
  SENTENCE if the run stops with one sentence; REPORTED if it goes on, but says what was lost; or
  one of `FAULTS`. `detail` shows a fault.
  """

  kind: str
  what: str
  outcome: str
  kills: int = 0
  detail: str = ''


def draw(part: str, seed: int, number: int) -> tuple[random.Random, str]:
  """The random numbers of a case, and its kind of experiment; each takes its turn."""
  kinds = STORING if part == 'damage' else tuple(KINDS)
  return random.Random(f'{seed}/{part}/{number}'), kinds[number % len(kinds)]


def kill_case(seed: int, number: int, folder: Path, uncut: Mapping[str, Uncut]) -> Case:
  """Kills a run up to `MOST_KILLS` times at random moments, then lets it end."""
  random_, kind = draw('kills', seed, number)
  workdir, usual = folder / 'run', uncut[kind].ended
  done = []
  for _ in range(random_.randint(1, MOST_KILLS)):
    kill, share = random_.choice(KILLS), random_.random()
    moment = usual.started + share * (usual.spent - usual.started)
    ended = run(kind, workdir, uncut, kill, moment)
    if not ended.signalled:
      break
    done.append(f'{kill.name} at {share:.3f}')
    if fault := fault_of_stop(ended, kill):
      return Case(kind, ', '.join(done), fault, len(done), tail(ended))
  what = ', '.join(done)
  ended = run(kind, workdir, uncut)
  outcome, detail = compare(ended, workdir, uncut[kind])
  if outcome == SENTENCE:  # nothing was damaged
    outcome = CRASH
  return Case(kind, what, outcome, len(done), detail)


def fault_of_stop(ended: Ended, kill: signal.Signals) -> str:
  """What is wrong with the end of a run that received a signal; empty if nothing is."""
  if ended.status is None:
    return HANGS
  if 'Traceback' in ended.printed:
    return TRACEBACK
  allowed = {0, -kill} if kill == signal.SIGKILL else {0, -kill, 130}
  return '' if ended.status in allowed else CRASH


def damage_case(seed: int, number: int, folder: Path, uncut: Mapping[str, Uncut]) -> Case:
  """Damages a file of a run that is finished, or was killed on its way, and runs it again."""
  random_, kind = draw('damage', seed, number)
  workdir, usual = folder / 'run', uncut[kind].ended
  if random_.random() < 0.5:
    # Not so early that there is nothing yet.
    moment = usual.started + random_.uniform(0.2, 1.0) * (usual.spent - usual.started)
    run(kind, workdir, uncut, signal.SIGKILL, moment)
    state = 'killed'
  else:
    shutil.copytree(uncut[kind].folder, workdir)
    state = 'finished'
  what = f'{damage.damage_one(random_, workdir)} of a {state} run'
  outcome, detail = compare(run(kind, workdir, uncut), workdir, uncut[kind])
  return Case(kind, what, outcome, 0, detail)


def disk_case(seed: int, number: int, folder: Path, uncut: Mapping[str, Uncut]) -> Case:
  """Runs on a disk that is too small, which must end with a sentence; then with room."""
  random_, kind = draw('disks', seed, number)
  blocks = [path.stat().st_blocks for path in uncut[kind].folder.rglob('*') if path.is_file()]
  used = 512 * sum(blocks)
  # What the run prints goes to a file beside its work directory, which must have room.
  workdir, share = folder / 'disk', random_.uniform(0.02, 0.9)
  with small_disk(workdir, max(4096, int(share * used))) as resize:
    ended = run(kind, workdir, uncut)
    what = f'room for {share:.2f} of {used >> 10} KiB'
    if ended.status == 0:
      return Case(kind, f'{what}, which was enough', IDENTICAL)
    first = CRASH if ended.status is None else outcome_of_failure(ended)
    resize(16 * used + (16 << 20))
    outcome, detail = compare(run(kind, workdir, uncut), workdir, uncut[kind])
  if first != SENTENCE:
    return Case(kind, what, first, 0, tail(ended))
  if 'space' not in ended.printed.lower():
    return Case(kind, what, FULL, 0, tail(ended))
  return Case(kind, what, outcome if outcome != SENTENCE else CRASH, 0, detail)


PARTS: Mapping[str, Callable[[int, int, Path, Mapping[str, Uncut]], Case]] = {
  'kills': kill_case,
  'damage': damage_case,
  'disks': disk_case,
}


def compare(ended: Ended, workdir: Path, uncut: Uncut) -> tuple[str, str]:
  """The outcome of a run that was to end like an uninterrupted one, and what shows a fault.

  Args:
    ended: how it ended.
    workdir: what it left.
    uncut: the other one.
  """
  if ended.status != 0:
    outcome = outcome_of_failure(ended)
    return outcome, tail(ended)
  end = read_end(workdir)
  kept = {name: digest for name, digest in end.items() if name in uncut.end}
  differences = differing(kept, dict(uncut.end))
  if not differences:
    return IDENTICAL, ''
  outcome = REPORTED if 'damaged' in ended.printed else SILENT
  return outcome, f'differs: {", ".join(differences)}; {tail(ended)}'


def outcome_of_failure(ended: Ended) -> str:
  """SENTENCE if a run that failed printed one sentence and nothing else that is an error."""
  if ended.status is None:
    return HANGS
  if 'Traceback' in ended.printed:
    return TRACEBACK
  errors = [line for line in ended.printed.splitlines() if line.startswith('error: ')]
  return SENTENCE if ended.status == 2 and len(errors) == 1 else CRASH


def tail(ended: Ended) -> str:
  """The last lines that a run printed, and its status."""
  status = f'no end after {HANG:.0f} s' if ended.status is None else f'status {ended.status}'
  return f'{status}: {ended.printed.strip()[-600:]}'
