"""What the README says of the embedded task, on the command it names, at full size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STYLES = ('report', 'list', 'question')


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('nash_md')
  command = [sys.executable, '-m', 'nlhf_jax.main', '--config=configs/nash_md.py']
  environment = os.environ | {'JAX_DISABLE_MOST_OPTIMIZATIONS': '0'}
  process = subprocess.run(
    [*command, f'--workdir={workdir}'],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.returncode == 0, process.stdout + process.stderr
  assert 'report.html' in process.stdout.splitlines()[-1]
  return json.loads((workdir / 'results.json').read_text())


def win_rate(results, row, column):
  place = results['policies'].index
  return results['tables']['oracle']['win_rate'][place(row)][place(column)]


def test_the_learned_judge_has_the_cycle_of_the_raters(results):
  for matrix in results['task']['judge_matrix'].values():
    assert min(matrix[0][1], matrix[1][2], matrix[2][0]) > 0.5


@pytest.mark.parametrize('policy', ['nash_md', 'self_play'])
def test_training_beats_sft_under_the_oracle(results, policy):
  assert win_rate(results, policy, 'sft') >= 0.75


def test_nash_md_keeps_every_style(results):
  shares = results['task']['shares']['nash_md']
  assert min(shares[style] for style in STYLES) > 0.1


def test_no_counter_style_exploits_nash_md(results):
  assert results['task']['counter']['nash_md']['win_rate'] <= 0.58


def test_policies_stay_within_reach_of_the_reference(results):
  divergence = results['kl_to_reference']
  assert divergence['sft'] == pytest.approx(0, abs=1e-4)
  assert 0.5 < divergence['nash_md'] < 10  # 1 / (2 tau) = 10 bounds the equilibrium's
