"""Law: a command that is stopped anywhere and run again ends with the same bits.

The quick tier stops one run twice, by SIGTERM and by SIGKILL; the slow tier stops a run by each
signal, and one whose judge works asynchronously.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as orbax

ROOT = Path(__file__).parents[1]
TOY = {
  'data.posts': 64,
  'data.held_out': 8,
  'model.width': 16,
  'model.layers': 1,
  'model.hidden': 16,
  'sft.steps': 30,
  'sft.evaluate_every': 7,
  'preference_model.steps': 30,
  'preference_model.evaluate_every': 7,
  'policies.self_play.steps': 2,
  'policies.nash_md.steps': 30,
  'policies.nash_md.evaluate_every': 7,
  'tournament.prompts': 8,
}
AHEAD = (
  '--config.policies.nash_md.ahead=True',
  '--config.policies.nash_md.judge=oracle',
  '--config.sft.steps=4',
  '--config.preference_model.steps=4',
  '--config.data.prompt_length=64',
)
LIMIT = 300  # seconds


def start(workdir, *more):
  overrides = [f'--config.{field}={value}' for field, value in TOY.items()]
  command = [
    sys.executable,
    '-m',
    'nlhf_jax.main',
    '--config=configs/nash_md.py',
    *overrides,
    *more,
  ]
  return subprocess.Popen(
    [*command, f'--workdir={workdir}'],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process):
  """The exit status, and what was printed."""
  printed, _ = process.communicate(timeout=LIMIT)
  return process.returncode, printed


def run_to_end(workdir, *more):
  """Runs the command; what it leaves."""
  status, printed = finish(start(workdir, *more))
  assert status == 0, printed
  return outcome(workdir)


def stop(workdir, number, stage, *more):
  """Runs the command and sends it a signal once the stage has a checkpoint."""
  process = start(workdir, *more)
  deadline = time.monotonic() + LIMIT
  while not list(workdir.glob(f'stages/{stage}-*/checkpoints/[0-9]*')):
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(number)
  status, printed = finish(process)
  if number == signal.SIGKILL:
    assert status == -signal.SIGKILL
  else:
    assert status == 130
    assert f'Stopped in {stage}, step ' in printed
    assert 'run the same command again' in printed


def outcome(workdir):
  """Every parameter that was trained, and the files that are compared byte for byte."""
  trained = {}
  for folder in sorted(workdir.glob('stages/*/checkpoints')):
    with orbax.training.Checkpointer(folder.absolute()) as checkpointer:
      trained[folder.parent.name] = jax.tree.map(np.asarray, checkpointer.load())
  return trained, [(workdir / name).read_bytes() for name in ('results.json', 'samples.jsonl')]


def assert_same(one, other):
  assert one[1] == other[1]
  chex.assert_trees_all_equal(one[0], other[0])


@pytest.fixture(scope='module')
def uncut(tmp_path_factory):
  """What a run leaves that is never stopped."""
  return run_to_end(tmp_path_factory.mktemp('uncut'))


def test_a_run_stopped_twice_ends_with_the_same_bits(uncut, tmp_path):
  stop(tmp_path, signal.SIGTERM, 'sft')
  stop(tmp_path, signal.SIGKILL, 'preference_model')
  assert_same(run_to_end(tmp_path), uncut)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('number', 'stage'),
  [(signal.SIGKILL, 'preference_model'), (signal.SIGTERM, 'sft'), (signal.SIGINT, 'nash_md')],
)
def test_a_stopped_run_ends_with_the_same_bits(number, stage, uncut, tmp_path):
  stop(tmp_path, number, stage)
  assert_same(run_to_end(tmp_path), uncut)


@pytest.mark.slow
def test_a_killed_run_with_asynchronous_judging_resumes(tmp_path):
  uncut = run_to_end(tmp_path / 'uncut', *AHEAD)
  stop(tmp_path / 'cut', signal.SIGKILL, 'nash_md', *AHEAD)
  assert_same(run_to_end(tmp_path / 'cut', *AHEAD), uncut)
