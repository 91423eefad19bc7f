"""The claims of docs/results.md about the embedded task, on its command at full size."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import OPTIMISED

ROOT = Path(__file__).parents[1]
MINUTES = 15  # for a machine that runs other tests beside it


def run(workdir):
  """Runs the command and checks its resources; its results."""
  command = [sys.executable, '-m', 'nlhf_jax.main', '--config=configs/nash_md.py']
  process = subprocess.run(
    [*command, f'--workdir={workdir}'],
    cwd=ROOT,
    env=os.environ | OPTIMISED,
    capture_output=True,
    text=True,
    check=False,
    timeout=60 * MINUTES,
  )
  assert process.returncode == 0, process.stdout + process.stderr
  assert 'report.html' in process.stdout.splitlines()[-1]
  kibibytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
  assert kibibytes < 4 * 2**20
  for path in workdir.glob('stages/*/metrics.jsonl'):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    compiled = [record['compiled_programs'] for record in records if record['step']]
    assert compiled[len(compiled) // 2] == compiled[-1], path  # later steps compile nothing
  results = json.loads((workdir / 'results.json').read_text())
  assert results['kl_to_reference']['sft'] == pytest.approx(0, abs=1e-4)
  return results


@pytest.mark.full
@pytest.mark.slow
def test_nash_md_beats_sft_with_low_exploitability(tmp_path):
  """One test, not six: each would run the whole pipeline."""
  results = run(tmp_path)
  task, place = results['task'], results['policies'].index
  for matrix in task['judge_matrix'].values():
    assert min(matrix[0][1], matrix[1][2], matrix[2][0]) > 0.5  # the cycle of the raters
  for policy in ('nash_md', 'self_play'):
    assert results['tables']['oracle']['win_rate'][place(policy)][place('sft')] >= 0.75
  assert min(task['shares']['nash_md'][style] for style in task['styles']) > 0.1
  assert task['counter']['nash_md']['win_rate'] <= 0.58
  bound = 1 / (2 * 0.06)  # of the equilibrium, in nats: 1 / (2 tau)
  assert 0.5 < results['kl_to_reference']['nash_md'] < bound
