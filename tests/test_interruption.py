"""Law, for the whole command: killed at any point and run again, it ends with the same bits."""

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
  '--config.policies.nash_md.async_judge=True',
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
  said, _ = process.communicate(timeout=LIMIT)
  return process.returncode, said


def outcome(workdir):
  """Every parameter that was trained, and the files that are compared byte for byte."""
  trained = {}
  for folder in sorted(workdir.glob('stages/*/checkpoints')):
    with orbax.training.Checkpointer(folder.absolute()) as checkpointer:
      trained[folder.parent.name] = jax.tree.map(np.asarray, checkpointer.load())
  return trained, [(workdir / name).read_bytes() for name in ('results.json', 'samples.jsonl')]


@pytest.fixture(scope='module')
def uncut(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('uncut')
  status, said = finish(start(workdir))
  assert status == 0, said
  return outcome(workdir)


@pytest.fixture(scope='module')
def uncut_ahead(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('uncut_ahead')
  status, said = finish(start(workdir, *AHEAD))
  assert status == 0, said
  return outcome(workdir)


def test_a_run_that_learns_one_update_late_resumes_too(uncut_ahead, tmp_path):
  process = start(tmp_path, *AHEAD)
  deadline = time.monotonic() + LIMIT
  while not list(tmp_path.glob('stages/nash_md-*/checkpoints/[0-9]*')):
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  finish(process)
  status, said = finish(start(tmp_path, *AHEAD))
  assert status == 0, said
  trained, files = outcome(tmp_path)
  assert files == uncut_ahead[1]
  chex.assert_trees_all_equal(trained, uncut_ahead[0])


@pytest.mark.parametrize(
  ('number', 'stage'),
  [(signal.SIGKILL, 'preference_model'), (signal.SIGTERM, 'sft'), (signal.SIGINT, 'nash_md')],
)
def test_killed_and_run_again_it_ends_with_the_same_bits(number, stage, uncut, tmp_path):
  process = start(tmp_path)
  deadline = time.monotonic() + LIMIT
  while not list(tmp_path.glob(f'stages/{stage}-*/checkpoints/[0-9]*')):
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(number)
  status, said = finish(process)
  if number == signal.SIGKILL:
    assert status == -signal.SIGKILL
  else:
    assert status == 130
    assert f'Stopped in {stage}, step ' in said
    assert 'run the same command again' in said

  status, said = finish(start(tmp_path))
  assert status == 0, said
  trained, files = outcome(tmp_path)
  assert files == uncut[1]
  chex.assert_trees_all_equal(trained, uncut[0])
