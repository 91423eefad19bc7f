"""The README's claims about the embedded task, on the command that it names, at full size.

The quick tier runs the same command with a tenth of the steps, data and prompts or less, which is
too little to rank the policies.
"""

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
TENTH = """
  --config.data.posts=3277 --config.data.held_out=103 --config.tournament.prompts=103
  --config.sft.steps=70 --config.sft.evaluate_every=20
  --config.preference_model.steps=100 --config.preference_model.evaluate_every=25
  --config.policies.self_play.steps=20 --config.policies.self_play.evaluate_every=5
  --config.policies.nash_md.steps=20 --config.policies.nash_md.evaluate_every=5
"""


def run(workdir, *more, variables=OPTIMISED):
  """Runs the command and checks what holds at any size; its results."""
  command = [sys.executable, '-m', 'nlhf_jax.main', '--config=configs/nash_md.py', *more]
  process = subprocess.run(
    [*command, f'--workdir={workdir}'],
    cwd=ROOT,
    env=os.environ | variables,
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
    compiled = [json.loads(line)['compiled_programs'] for line in path.read_text().splitlines()]
    assert compiled[len(compiled) // 2] == compiled[-1], path  # later steps compile nothing
  results = json.loads((workdir / 'results.json').read_text())
  assert results['kl_to_reference']['sft'] == pytest.approx(0, abs=1e-4)
  return results


def test_tenth_of_the_run_writes_a_report(tmp_path):
  results = run(tmp_path, *TENTH.split(), variables={})
  assert results['policies'] == ['sft', 'self_play', 'nash_md']
  for policy in ('nash_md', 'self_play'):
    assert 0 < results['kl_to_reference'][policy] < 1 / (2 * 0.06)
  assert results['task']['judge_matrix'].keys() == {'oracle', 'learned'}
  matrix = results['task']['judge_matrix']['oracle']
  assert min(matrix[0][1], matrix[1][2], matrix[2][0]) > 0.5  # the cycle of the raters


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
