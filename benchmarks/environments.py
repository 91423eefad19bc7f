"""Environments that other packages are measured in, and what figures depend on."""

import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import jax
import numpy as np


def make(folder: Path, requirements: Sequence[str]) -> Path:
  """Makes an environment with these packages, if it is not there; its Python."""
  python, stamp = folder / 'bin' / 'python', folder / 'installed'
  if not stamp.exists() or stamp.read_text().split() != list(requirements):
    print(f'Installing {", ".join(requirements)} in {folder}', flush=True)
    subprocess.run([sys.executable, '-m', 'venv', '--clear', folder], check=True)
    subprocess.run([python, '-m', 'pip', 'install', '--quiet', *requirements], check=True)
    stamp.write_text('\n'.join(requirements))
  return python


def run_json(command: Sequence, **options) -> dict:
  """The last line that a program prints, which is JSON."""
  command = list(map(str, command))
  done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
  if done.returncode:
    sys.exit(f'{" ".join(command)} failed:\n{done.stderr[-5000:]}')
  return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict:
  """What the figures depend on."""
  info = Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  models = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
  return {
    'date': date.today().isoformat(),
    'cpu': models[0] if models else platform.processor(),
    'cpus': os.cpu_count(),
    'device': jax.devices()[0].device_kind,
    'load': os.getloadavg()[0],
    'python': platform.python_version(),
    'jax': jax.__version__,
    'numpy': np.__version__,
  }


def peak_memory() -> int:
  """The most bytes that this process has held: on its device or, of a CPU, in all."""
  stats = jax.devices()[0].memory_stats() or {}
  return stats.get('peak_bytes_in_use') or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
