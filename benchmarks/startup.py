"""Seconds to the first step of a run, and to the end of a short one: first start against second.

python benchmarks/startup.py [--config=configs/nash_md.py]
python benchmarks/startup.py --config=configs/smollm2.py:start # after `make real` has its files

Neither has a trained stage; the second one finds the programs that the first one compiled and the
data that it tokenised, as every start of `make run` after the first does. The short run takes two
steps of every stage and a tournament on 64 prompts, in batches as large as those of training. Also
the programs that the first short run compiles, and its peak memory. Writes
benchmarks/results/startup.json or startup_smollm2.json.
"""

import argparse
import io
import json
import os
import pty
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import environments

from nlhf_jax import command
from nlhf_jax.storage import json_lines

ROOT = Path(__file__).parents[1]


def run(config: str, workdir: Path, settings: list[str], until: str | None) -> float:
  """Seconds until what is printed matches, or else until the end."""
  reading, terminal = pty.openpty()  # progress bars are for terminals
  start = time.perf_counter()
  process = subprocess.Popen(
    [
      sys.executable,
      '-m',
      'nlhf_jax.main',
      f'--config={config}',
      f'--workdir={workdir}',
      *settings,
    ],
    cwd=ROOT,
    env={name: value for name, value in os.environ.items() if not name.startswith('JAX_')},
    stdout=terminal,
    stderr=terminal,
  )
  os.close(terminal)
  printed = b''
  with os.fdopen(reading, 'rb', buffering=0) as terminal:
    while part := read(terminal):
      printed += part
      if until and re.search(until, printed.decode(errors='replace')):
        process.kill()
        break
  seconds = time.perf_counter() - start
  if process.wait() and not until:
    sys.exit(printed.decode(errors='replace')[-3000:])
  return seconds


def read(terminal: io.FileIO) -> bytes:
  """What is printed next; empty at the end."""
  try:
    return terminal.read(1 << 16)
  except OSError:  # no process has the terminal open
    return b''


def read_programs(folder: Path) -> int:
  """The number of programs that a run has compiled at its last log."""
  last = [json_lines.read(path)[-1] for path in folder.glob('stages/*/metrics.jsonl')]
  return max(record.get('compiled_programs', 0) for record in last)


def main(config: str) -> None:
  """Measures both starts of both."""
  loaded = command.load_config(config)
  rows = [name for name in ('sft', 'preference_model') if loaded[name].steps]
  rows += [f'policies.{name}' for name in loaded.policies]
  short = [f'--config.{row}.{field}=2' for row in rows for field in ('steps', 'evaluate_every')]
  batch = max(policy.batch for policy in loaded.policies.values())
  short += ['--config.tournament.prompts=64', f'--config.tournament.batch={batch}']
  found = {'machine': environments.machine(), 'config': config}
  for name, settings, until in (
    ('first step', [], r': .* [1-9]\d*/\d+ \['),
    ('a short run', short, None),
  ):
    with tempfile.TemporaryDirectory() as folder:
      seconds = []
      for _ in range(2):
        seconds.append(run(config, Path(folder), settings, until))
        if not until and len(seconds) == 1:
          found['programs'] = read_programs(Path(folder))
          found['peak memory'] = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        for stage in (Path(folder) / 'stages').glob('[!.]*-*'):
          if not stage.name.startswith('data-'):
            shutil.rmtree(stage)
    found[name] = dict(zip(('first', 'second'), seconds, strict=True))
    print(f'{name}: {seconds[0]:.1f} s, then {seconds[1]:.1f} s', flush=True)
  print(f'{found["programs"]} programs, {found["peak memory"] / 1e9:.2f} GB')
  name = 'startup_smollm2' if 'smollm2' in config else 'startup'
  path = ROOT / 'benchmarks' / 'results' / f'{name}.json'
  path.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--config', default='configs/nash_md.py')
  sys.path.insert(0, str(ROOT))
  main(parser.parse_args().config)
