"""Toy runs of every kind in processes of their own: uninterrupted ones, and ones that are killed.

Moments are measured in seconds of processor time, so that a busy machine does not shift them.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.chaos.ends import read_end

ROOT = Path(__file__).parents[2]
TICKS = os.sysconf('SC_CLK_TCK')
HANG = 300.0  # seconds after which a run counts as hanging; the longest takes a tenth of it
POLL = 0.005  # seconds


class Ended(NamedTuple):
  """How a run ended.

  `status` is that of the process, -N if signal N killed it; None for a hang. `started` and `spent`
  are seconds of processor time when the work directory appeared, and at the end. `signalled` is
  whether the run was still there to receive the signal.
  """

  status: int | None
  printed: str
  started: float
  spent: float
  signalled: bool = False


class Uncut(NamedTuple):
  """An uninterrupted run: its folder, what it left, and how it ended."""

  folder: Path
  end: Mapping[str, str]
  ended: Ended


def run(
  kind: str,
  workdir: Path,
  uncut: Mapping[str, Uncut],
  kill: signal.Signals | None = None,
  moment: float = 0.0,
) -> Ended:
  """Runs an experiment to its end, or until it is killed.

  Args:
    kind: of the experiment.
    workdir: is made, or resumed.
    uncut: finished runs; an evaluation takes its policies from that of `language`.
    kill: a signal to send.
    moment: when to send it, in seconds of processor time, but not before there is a work directory.
  """
  command = [sys.executable, '-m', 'nlhf_jax.main', f'--config=tests/chaos/toy.py:{kind}']
  if kind == 'evaluate':
    trained = uncut['language'].folder
    command.append(f'--config.entries={trained}:nash_md,file={trained}/samples.jsonl')
  log = workdir.with_name(f'{workdir.name}.log')
  log.parent.mkdir(parents=True, exist_ok=True)
  with log.open('w') as output:
    process = subprocess.Popen(
      [*command, f'--workdir={workdir}'], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
    )
  signalled, started, spent, since = False, 0.0, 0.0, time.monotonic()
  while process.poll() is None and time.monotonic() - since < HANG:
    spent = max(spent, processor_seconds(process.pid))
    if not started and workdir.exists():
      started = spent
    if kill and not signalled and started and spent >= moment:
      process.send_signal(kill)
      signalled = True
    time.sleep(POLL)
  hangs = process.poll() is None
  if hangs:
    process.kill()
    process.wait()
  printed = log.read_text(errors='replace')
  return Ended(None if hangs else process.returncode, printed, started, spent, signalled)


def processor_seconds(process: int) -> float:
  """Seconds of processor time that a process has spent; 0 if it has ended."""
  try:
    fields = Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
  except OSError:
    return 0.0
  return (int(fields[11]) + int(fields[12])) / TICKS


def run_uncut(folder: Path, kinds: Sequence[str]) -> dict[str, Uncut]:
  """Kind -> its uninterrupted run in `folder`.

  Raises:
    RuntimeError: if a run fails.
  """
  found: dict[str, Uncut] = {}
  for kind in kinds:
    # Once to compile: moments of later runs are shares of the time that a run with programs takes.
    run(kind, folder / 'compiling', found)
    shutil.rmtree(folder / 'compiling')
    ended = run(kind, folder / kind, found)
    if ended.status != 0:
      raise RuntimeError(f'{kind} ends with status {ended.status}:\n{ended.printed[-3000:]}')
    found[kind] = Uncut(folder / kind, read_end(folder / kind), ended)
  return found


def differing(end: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
  """What differs between two ends of a run."""
  return sorted(name for name in end.keys() | other.keys() if end.get(name) != other.get(name))


def environment(cache: str | Path) -> dict[str, str]:
  """The environment of the runs: compiled programs are shared, and compiled with little effort."""
  return {
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'XLA_FLAGS': '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1',
  }
