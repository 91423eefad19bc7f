"""Law: two processes end in time, with work saved: stopped, within a step; lost, within `LIMIT`.

Losses in the middle of training are tried in `test_distributed`.
"""

import re
import signal
import sys
import time

import pytest

from nlhf_jax.distributed import LOST, RESUME_STATUS
from tests.chaos.small_disk import can_mount, small_disk
from tests.test_distributed import LIMIT, SMALL, start_two

STEP = 3  # seconds, most of which the judge sleeps
STOPPED = STEP + 5  # seconds from a signal to the end

JUDGE = f"""
import sys, time

def by_length(prompts, responses):
  print('judging', file=sys.stderr, flush=True)
  time.sleep({STEP})
  return [len(response) for response in responses]
"""
TRAINING = f"""
  --config=configs/nash_md.py {SMALL} --config.data.prompt_length=64 --config.sft.steps=2
  --config.policies.self_play.steps=1000 --config.policies.self_play.batch=8
  --config.policies.nash_md.judge=lengths --config.judges=lengths
"""


def wait_for_line(program, line):
  """Reads what a program prints on its standard error up to that line."""
  printed = []
  while not printed or printed[-1] != f'{line}\n':
    printed.append(program.stderr.readline())
    assert printed[-1], ''.join(printed)


@pytest.mark.slow
@pytest.mark.parametrize('number', [0, 1])
def test_long_steps_are_saved_and_both_end(number, tmp_path):
  (tmp_path / 'judge.py').write_text(JUDGE)
  judge = f'--config.policies.self_play.judge={tmp_path / "judge.py"}:by_length'
  program = [sys.executable, '-m', 'nlhf_jax.main', *TRAINING.split(), judge]
  programs = start_two([*program, f'--workdir={tmp_path / "run"}'])
  for _ in range(3):  # the first step compiles
    wait_for_line(programs[0], 'judging')
  since = time.monotonic()
  programs[number].send_signal(signal.SIGTERM)
  printed = [program.communicate(timeout=STOPPED)[1] for program in programs]
  assert time.monotonic() - since < STOPPED
  assert [program.returncode for program in programs] == [RESUME_STATUS] * 2, printed
  # Of one step: each process writes its part of the arrays.
  (manifest,) = tmp_path.glob('run/stages/self_play-*/checkpoints/manifest-*.json')
  assert 2 <= int(re.search(r'\d+', manifest.name)[0]) <= 4


LOSING = """
import os, signal, sys, time
from nlhf_jax import command, distributed
from nlhf_jax.errors import UserError

_, how, state, disk, cluster = sys.argv

def lose(*_):
  if how == 'error':
    raise UserError('no luck')
  with open(f'{disk}/file', 'wb') as file:
    file.write(bytes(1 << 20))

def work(config, settings):
  signal.signal(signal.SIGUSR1, lose)
  distributed.any_process(False)
  print('at work', file=sys.stderr, flush=True)
  while True:
    if state == 'together':
      distributed.any_process(False)
    time.sleep(0.01 if state == 'together' else 600)

arguments = ['main', '--config=tabular', cluster]
sys.exit(command.run_command(arguments, '', {}, work))
"""


@pytest.fixture
def disk(tmp_path):
  """A disk with room for 64 KiB."""
  with small_disk(tmp_path / 'disk', 1 << 16):
    yield tmp_path / 'disk'


# How a process ends: the signal that it gets, and what it prints last.
ENDS = {
  'killed': (signal.SIGKILL, None),
  'stopped': (signal.SIGSTOP, None),
  'error': (signal.SIGUSR1, 'error: no luck'),
  'full': (signal.SIGUSR1, 'No space left on device'),
}
WORK = [*((how, 'idle') for how in ENDS), ('full', 'together')]


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason='only root can mount a small disk')
@pytest.mark.parametrize('number', [0, 1])
@pytest.mark.parametrize(('how', 'state'), WORK)
def test_a_loss_ends_the_other_whatever_it_does(how, state, number, disk):
  programs = start_two([sys.executable, '-c', LOSING, how, state, str(disk)])
  for program in programs:
    wait_for_line(program, 'at work')
  time.sleep(0.5)  # both wait
  lost, other = programs[number], programs[1 - number]
  kill, last = ENDS[how]
  since = time.monotonic()
  lost.send_signal(kill)
  _, printed = other.communicate(timeout=LIMIT)
  assert time.monotonic() - since < LIMIT
  assert other.returncode == RESUME_STATUS
  assert printed.splitlines()[-1] == LOST
  if how == 'stopped':
    lost.kill()
  _, printed = lost.communicate(timeout=LIMIT)
  if last:
    assert last in printed.splitlines()[-1]
    assert lost.returncode == 2
