"""Law: a stopped run goes on with other numbers of devices and processes, equal to rounding."""

import os
import signal
import subprocess
import sys

import pytest

from nlhf_jax.distributed import RESUME_STATUS
from tests.test_distributed import ROOT, TOY, lines, results, wait_for_training

FLAGS = [*TOY.split(), '--config.sft.evaluate_every=10']


def begin(workdir, devices, processes=1):
  """Starts the run with as many simulated devices in each process."""
  command = [ROOT / 'launch' / 'local.sh', str(processes)]
  if processes == 1:
    command = [sys.executable, '-m', 'nlhf_jax.main']
  devices = {'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
  return subprocess.Popen(
    [*command, *FLAGS, f'--workdir={workdir}'],
    cwd=ROOT,
    env=os.environ | devices | {'JAX_PLATFORMS': 'cpu', 'PYTHON': sys.executable},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(program):
  printed, _ = program.communicate(timeout=500)
  assert program.returncode == 0, printed[-3000:]
  return printed


@pytest.fixture(scope='module')
def uncut(tmp_path_factory):
  """The work directory of a run on one device."""
  folder = tmp_path_factory.mktemp('uncut')
  finish(begin(folder, 1))
  return folder


@pytest.mark.slow
@pytest.mark.parametrize(
  ('before', 'after', 'note'),
  [
    ((8, 1), (4, 1), 'stopped on 8 devices of 1 process, now 4 devices of 1 process'),
    ((1, 4), (1, 2), 'stopped on 4 devices of 4 processes, now 2 devices of 2 processes'),
    ((1, 2), (1, 1), 'stopped on 2 devices of 2 processes, now 1 device of 1 process'),
  ],
)
def test_a_stopped_run_goes_on_with_others(before, after, note, uncut, tmp_path):
  program = begin(tmp_path, *before)
  wait_for_training([program], tmp_path)
  program.send_signal(signal.SIGTERM)
  printed, _ = program.communicate(timeout=200)
  assert program.returncode == (RESUME_STATUS if before[1] > 1 else 130), printed[-3000:]
  assert note in finish(begin(tmp_path, *after))
  one, two = (lines(folder, 'samples.jsonl') for folder in (uncut, tmp_path))
  assert [line['responses'] for line in one] == [line['responses'] for line in two]
  assert results(tmp_path) == pytest.approx(results(uncut), abs=1e-4, nan_ok=True)
  one, two = (lines(folder, 'metrics.jsonl') for folder in (uncut, tmp_path))
  assert [record['step'] for record in one] == [record['step'] for record in two]
  for name in ('loss', 'held_out_nats_per_token'):
    values = [[record.get(name) for record in records] for records in (one, two)]
    assert values[1] == pytest.approx(values[0], abs=1e-4)


@pytest.mark.slow
def test_devices_that_do_not_divide_a_batch_are_refused_with_those_that_do(tmp_path):
  program = begin(tmp_path, 3)
  printed, _ = program.communicate(timeout=200)
  assert program.returncode == 2
  assert 'config.sft.batch=8, in 1 parts, cannot be split over the 3 devices' in printed
  assert 'it can over 1, 2, 4, 8: change their number, or the batch.' in printed
