"""What the README says of the embedded task, on the command it names, at full size."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MINUTES = 15  # for a machine that runs other tests beside it


def run(workdir):
  command = [sys.executable, '-m', 'nlhf_jax.main', '--config=configs/nash_md.py']
  return subprocess.run(
    [*command, f'--workdir={workdir}'],
    cwd=ROOT,
    env=os.environ | {'JAX_DISABLE_MOST_OPTIMIZATIONS': '0'},
    capture_output=True,
    text=True,
    check=False,
    timeout=60 * MINUTES,
  )


def test_nash_md_beats_sft_and_is_hard_to_exploit(tmp_path):
  """One test, not six: two workers would each run the pipeline for their share of them."""
  process = run(tmp_path)
  assert process.returncode == 0, process.stdout + process.stderr
  assert 'report.html' in process.stdout.splitlines()[-1]
  kibibytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
  assert kibibytes < 4 * 2**20

  results = json.loads((tmp_path / 'results.json').read_text())
  task, place = results['task'], results['policies'].index
  for matrix in task['judge_matrix'].values():
    assert min(matrix[0][1], matrix[1][2], matrix[2][0]) > 0.5  # the cycle of the raters
  for policy in ('nash_md', 'self_play'):
    assert results['tables']['oracle']['win_rate'][place(policy)][place('sft')] >= 0.75
  assert min(task['shares']['nash_md'][style] for style in task['styles']) > 0.1
  assert task['counter']['nash_md']['win_rate'] <= 0.58
  assert results['kl_to_reference']['sft'] == pytest.approx(0, abs=1e-4)
  for path in tmp_path.glob('stages/*/metrics.jsonl'):
    built = [json.loads(line)['compiled_programs'] for line in path.read_text().splitlines()]
    assert built[len(built) // 2] == built[-1], path  # no step takes a program of its own
  bound = 1 / (2 * 0.06)  # of the equilibrium, in nats: 1 / (2 tau)
  assert 0.5 < results['kl_to_reference']['nash_md'] < bound
