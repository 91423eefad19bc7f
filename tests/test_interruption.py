"""Law: a command that is stopped anywhere and run again ends with the same bits.

Runs are stopped by each signal, twice, and while a judge works asynchronously.
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
pytestmark = pytest.mark.slow
TOY = """
  --config.data.posts=64 --config.data.held_out=8
  --config.model.width=16 --config.model.layers=1 --config.model.hidden=16
  --config.sft.steps=30 --config.sft.evaluate_every=7
  --config.preference_model.steps=30 --config.preference_model.evaluate_every=7
  --config.tournament.prompts=8
"""
DPO = f'--config=configs/dpo.py {TOY} --config.policies.dpo.steps=2'.split()
NASH_MD = f"""
  --config=configs/nash_md.py {TOY} --config.policies.self_play.steps=2
  --config.policies.nash_md.steps=30 --config.policies.nash_md.evaluate_every=7
""".split()
ASYNCHRONOUS = [
  *NASH_MD,
  '--config.policies.nash_md.async_judge=True',
  '--config.policies.nash_md.judge=oracle',
  '--config.sft.steps=4',
  '--config.preference_model.steps=4',
  '--config.data.prompt_length=64',
]
LIMIT = 300  # seconds


def start(workdir, arguments):
  return subprocess.Popen(
    [sys.executable, '-m', 'nlhf_jax.main', *arguments, f'--workdir={workdir}'],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process):
  """The exit status, and what was printed."""
  printed, _ = process.communicate(timeout=LIMIT)
  return process.returncode, printed


def run_to_end(workdir, arguments):
  """Runs the command; what it leaves."""
  status, printed = finish(start(workdir, arguments))
  assert status == 0, printed
  return outcome(workdir)


def stop(workdir, arguments, number, stage):
  """Runs the command and sends it a signal once the stage has a checkpoint."""
  process = start(workdir, arguments)
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
  """What Nash-MD leaves that is never stopped."""
  return run_to_end(tmp_path_factory.mktemp('uncut'), NASH_MD)


def test_twice_stopped_run_is_bitwise_identical(tmp_path):
  uncut, cut = tmp_path / 'uncut', tmp_path / 'cut'
  stop(cut, DPO, signal.SIGTERM, 'sft')
  stop(cut, DPO, signal.SIGKILL, 'preference_model')
  assert_same(run_to_end(cut, DPO), run_to_end(uncut, DPO))


@pytest.mark.parametrize(
  ('number', 'stage'),
  [(signal.SIGKILL, 'preference_model'), (signal.SIGTERM, 'sft'), (signal.SIGINT, 'nash_md')],
)
def test_stopped_run_is_bitwise_identical(number, stage, uncut, tmp_path):
  stop(tmp_path, NASH_MD, number, stage)
  assert_same(run_to_end(tmp_path, NASH_MD), uncut)


def test_a_killed_run_with_asynchronous_judging_resumes(tmp_path):
  uncut, cut = tmp_path / 'uncut', tmp_path / 'cut'
  stop(cut, ASYNCHRONOUS, signal.SIGKILL, 'nash_md')
  assert_same(run_to_end(cut, ASYNCHRONOUS), run_to_end(uncut, ASYNCHRONOUS))


@pytest.mark.slow
def test_damaged_checkpoint_of_a_finished_stage_is_trained_again(tmp_path):
  before = run_to_end(tmp_path, DPO)
  (folder,) = tmp_path.glob('stages/preference_model-*/checkpoints/30')
  largest = max(
    (path for path in folder.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size
  )
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)
  status, printed = finish(start(tmp_path, DPO))
  assert status == 0, printed
  assert 'going on from that of step 28' in printed
  assert_same(outcome(tmp_path), before)


@pytest.mark.slow
def test_diverging_stage_stops_and_is_never_done(tmp_path):
  status, printed = finish(start(tmp_path, [*DPO, '--config.sft.optimizer.learning_rate=5e6']))
  assert status == 2, printed
  error = printed.splitlines()[-1]
  assert error.startswith('error: sft, step ')
  assert 'learning rate' in error
  (note,) = tmp_path.glob('stages/sft-*/stage.json')
  assert '"done": false' in note.read_text()
  assert not (tmp_path / 'results.json').exists()
  assert len(list(tmp_path.glob('stages/[!.]*'))) <= 2  # SFT and tokenised data
