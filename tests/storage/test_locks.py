"""A lock keeps other runs out for as long as its process lives, and no longer."""

import signal
import subprocess
import sys
import threading

import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.storage import locks

HOLD = """
import sys, time
from pathlib import Path
from nlhf_jax.storage import locks
place = Path(sys.argv[2])
with locks.lock_folder(place) if sys.argv[1] == 'folder' else locks.wait_for_lock(place):
  print('held', flush=True)
  time.sleep(300)
"""


@pytest.fixture
def hold():
  """A function that starts another process, which holds a lock until it is killed."""
  started = []

  def start(kind, place):
    command = [sys.executable, '-c', HOLD, kind, str(place)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    started.append(process)
    assert process.stdout.readline() == 'held\n'
    return process

  yield start
  for process in started:
    process.kill()
    process.communicate()


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_lock_ends_when_its_process_is_killed(number, hold, tmp_path):
  folder = tmp_path / 'stages' / 'sft'
  process = hold('folder', folder)
  with pytest.raises(
    UserError, match=r'another run is at work in .*sft, and nothing was changed; wait'
  ):
    locks.lock_folder(folder).__enter__()
  process.send_signal(number)
  process.wait()
  for _ in range(2):  # the file that is left does no harm
    with locks.lock_folder(folder):
      assert (folder / '.lock').exists()


def test_locks_of_two_folders_are_held_together(tmp_path):
  with locks.lock_folder(tmp_path / 'one'), locks.lock_folder(tmp_path / 'two'):
    pass


def test_an_error_frees_the_folder(tmp_path):
  with pytest.raises(ValueError, match='a bug'), locks.lock_folder(tmp_path):
    raise ValueError('a bug')
  with locks.lock_folder(tmp_path):
    pass


def test_waiting_ends_when_the_other_process_does(hold, tmp_path):
  process, taken = hold('file', tmp_path / 'lock'), threading.Event()

  def take():
    with locks.wait_for_lock(tmp_path / 'lock'):
      taken.set()

  thread = threading.Thread(target=take)
  thread.start()
  assert not taken.wait(0.5)
  process.kill()
  thread.join(60)
  assert taken.is_set()
