"""Seconds to the first step of a run, and to the end of a short one: first start against second.

python benchmarks/startup.py [--config=configs/nash_md.py]

Neither has a trained stage; the second one finds the programs that the first one compiled and the
data that it tokenised, as every start of `make run` after the first does. The short run takes two
steps of every stage and a tournament on 64 prompts. Writes benchmarks/results/startup.json.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import environments

from nlhf_jax import command

ROOT = Path(__file__).parents[1]


def run(config: str, workdir: Path, settings: list[str], until: str | None) -> float:
  """Seconds until a line matches, or else until the end."""
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
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )
  printed = b''
  while part := os.read(process.stdout.fileno(), 1 << 16):
    printed += part
    if until and re.search(until, printed.decode(errors='replace')):
      process.kill()
      break
  seconds = time.perf_counter() - start
  if process.wait() and not until:
    sys.exit(printed.decode(errors='replace')[-3000:])
  return seconds


def main(config: str) -> None:
  """Measures both starts of both."""
  rows = (
    'sft',
    'preference_model',
    *(f'policies.{name}' for name in command.load_config(config).policies),
  )
  short = [f'--config.{row}.{field}=2' for row in rows for field in ('steps', 'evaluate_every')]
  short.append('--config.tournament.prompts=64')
  found = {'machine': environments.machine(), 'config': config}
  for name, settings, until in (
    ('first step', [], r'sft: .* [1-9]\d*/\d'),
    ('a short run', short, None),
  ):
    with tempfile.TemporaryDirectory() as folder:
      seconds = []
      for _ in range(2):
        seconds.append(run(config, Path(folder), settings, until))
        for stage in (Path(folder) / 'stages').glob('[!.]*-*'):
          if not stage.name.startswith('data-'):
            shutil.rmtree(stage)
    found[name] = dict(zip(('first', 'second'), seconds, strict=True))
    print(f'{name}: {seconds[0]:.1f} s, then {seconds[1]:.1f} s')
  (ROOT / 'benchmarks' / 'results' / 'startup.json').write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--config', default='configs/nash_md.py')
  sys.path.insert(0, str(ROOT))
  main(parser.parse_args().config)
