"""A full, read-only or vanished disk gives one sentence, and a run goes on once there is room."""

import contextlib
import errno
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.data import token_store
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.start import start
from nlhf_jax.storage import disk, json_lines, locks
from nlhf_jax.structs import TrainState
from nlhf_jax.training.checkpoints import Checkpoints
from nlhf_jax.training.trackers import Metrics

FULL = r"^cannot write to '.+': No space left on device \(.*[\d,]+ bytes free\); make room there, "
BIG = {'text': 'x' * 100_000}


def mount(folder, options):
  subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder], check=True)


@pytest.fixture
def small(tmp_path):
  """A folder on a disk of 64 kB."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  if sys.platform != 'linux' or os.geteuid() != 0:
    pytest.skip('only root can mount a small disk')
  try:
    mount(folder, 'size=64k')
  except (OSError, subprocess.CalledProcessError):
    pytest.skip('a small disk cannot be mounted here')
  yield folder
  subprocess.run(['umount', '--lazy', folder], check=True)


def write_metrics(folder):
  with contextlib.closing(Metrics(folder, 'sft', 0)) as metrics:
    for step in range(60):
      metrics.write(step + 1, {f'metric {name}': 1.0 for name in range(40)})


def write_tokens(folder):
  def write(draft):
    (draft / 'tokens').write_bytes(b'x' * 100_000)

  token_store.write_once(folder / 'data', write)


def save_checkpoint(folder):
  weights = jnp.asarray(np.random.default_rng(0).random(50_000))
  state = TrainState(jnp.asarray(1), {'policy': {'weights': weights}}, (), {})
  with disk.writing(folder), contextlib.closing(Checkpoints(folder / 'checkpoints')) as checkpoints:
    checkpoints.save(state)


WRITERS = {
  'records': lambda folder: json_lines.write(folder / 'lines.jsonl', [BIG]),
  'appended records': lambda folder: json_lines.append(folder / 'lines.jsonl', [BIG]),
  'value': lambda folder: json_lines.write_json(folder / 'value.json', BIG),
  'sealed value': lambda folder: json_lines.write_sealed(folder / 'value.json', BIG),
  'metrics': write_metrics,
  'tokens': write_tokens,
  'checkpoint': save_checkpoint,
}


@pytest.mark.parametrize('name', WRITERS)
def test_a_full_disk_gives_a_sentence_and_loses_nothing(small, name):
  (small / 'before').write_text('safe')
  with pytest.raises(UserError, match=FULL):
    WRITERS[name](small)
  assert (small / 'before').read_text() == 'safe'
  mount(small, 'size=4m,remount')
  WRITERS[name](small)


def test_a_full_disk_keeps_the_records_before(small):
  path = small / 'lines.jsonl'
  json_lines.append(path, [{'step': 1}])
  with pytest.raises(UserError, match=FULL):
    json_lines.append(path, [BIG])
  mount(small, 'size=4m,remount')
  assert json_lines.read(path) == [{'step': 1}]
  json_lines.append(path, [BIG])
  assert json_lines.read(path) == [{'step': 1}, BIG]
  assert not list(small.glob('*.damaged'))


@pytest.mark.slow
@pytest.mark.parametrize('kilobytes', [150, 300, 450])
def test_a_run_on_a_full_disk_goes_on_with_room(small, kilobytes, toy_run):
  mount(small, f'size={kilobytes}k,remount')
  config = toy_run.make_config()
  with pytest.raises(UserError, match=FULL):
    start(config, 'nash_md', small / 'run', small / 'stages')
  assert not (small / 'run' / 'results.json').exists()
  mount(small, 'size=64m,remount')
  start(config, 'nash_md', small / 'run', small / 'stages')
  for name in ('results.json', 'samples.jsonl'):
    assert (small / 'run' / name).read_bytes() == (toy_run.folder / 'run' / name).read_bytes()


def test_a_read_only_disk_is_not_full(small):
  json_lines.write(small / 'lines.jsonl', [{'step': 1}])
  mount(small, 'ro,remount')
  for work in (
    lambda: WRITERS['value'](small),
    lambda: WRITERS['appended records'](small),
    lambda: write_metrics(small),
    lambda: write_tokens(small),
    lambda: locks.lock_folder(small / 'new').__enter__(),
  ):
    with pytest.raises(UserError, match=r'Read-only file system .*; make it writable, or give'):
      work()


@pytest.mark.parametrize(
  ('error', 'expected'),
  [
    (OSError(errno.ENOSPC, 'x'), "^cannot write to '.*run': No space left"),
    (OSError(errno.EIO, 'x'), "^cannot write to '.*run': Input/output error"),
    (ValueError('RESOURCE_EXHAUSTED: "/a/b": Failed [os_error_code=\'28\']'), "'/a/b': No space"),
  ],
)
def test_errors_of_the_disk_are_explained(tmp_path, error, expected):
  with pytest.raises(UserError, match=expected), disk.writing(tmp_path / 'run'):
    raise RuntimeError('in a thread') from error


@pytest.mark.parametrize(
  'error',
  [
    OSError('without a number'),
    FileNotFoundError(errno.ENOENT, 'x', '/elsewhere/file'),
    ConnectionResetError(errno.ECONNRESET, 'x'),
    ValueError('a bug'),
    UserError('a sentence'),
  ],
)
def test_other_errors_are_not_blamed_on_the_disk(tmp_path, error):
  with pytest.raises(type(error)) as raised, disk.writing(tmp_path / 'run'):
    raise error
  assert raised.value is error
