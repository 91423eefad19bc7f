"""Law: a run whose folder is lost resumes from its store, and ends with the same bits."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time

import fsspec
import pytest

from nlhf_jax import main
from nlhf_jax.errors import Interrupted, UserError
from nlhf_jax.storage import leases, store
from tests.test_distributed import ROOT, TOY


@pytest.fixture
def memory(monkeypatch):
  """The URL of an empty store in memory."""
  monkeypatch.setitem(store.EXTRAS, 'memory', None)
  monkeypatch.setitem(leases.PLACES, 'memory', in_memory)
  fs = fsspec.filesystem('memory')
  fs.store.clear()
  return 'memory://bucket/run'


def in_memory(url):
  """The place of a lease in memory."""
  fs, name = fsspec.core.url_to_fs(url)

  def read():
    return leases.Stored(fs.cat_file(name), fs.cat_file(name), 0.0) if fs.exists(name) else None

  def replace(text, version):
    if version != (read() and read().version):
      raise leases.Refused
    fs.pipe_file(name, text)
    return text

  return leases.Place(read, replace)


def write(folder, files):
  for name, text in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def visible(folder):
  return {
    path.relative_to(folder).as_posix(): path.read_text()
    for path in folder.rglob('*')
    if path.is_file() and not path.name.startswith('.')
  }


FILES = {'results.json': '{}', 'stages/sft/stage.json': '1', 'stages/sft/checkpoints/4/a': 'x'}


def opened(folder, url):
  mirror = store.Mirror(folder, url)
  mirror.fetch()
  return mirror


def test_a_lost_folder_comes_back(memory, tmp_path):
  write(tmp_path / 'a', FILES | {'programs/big': 'not copied', '.lock': ''})
  opened(tmp_path / 'a', memory).push()
  opened(tmp_path / 'b', memory)
  assert visible(tmp_path / 'b') == FILES


def test_only_changes_are_copied_notes_last(memory, tmp_path, monkeypatch):
  write(tmp_path / 'a', FILES)
  mirror, copied = opened(tmp_path / 'a', memory), []
  put = mirror._fs.put_file
  monkeypatch.setattr(
    mirror._fs, 'put_file', lambda path, to: (copied.append(to.split('run/')[1]), put(path, to))
  )
  mirror.push()
  assert copied[-1] == 'stages/sft/stage.json'
  copied.clear()
  write(tmp_path / 'a', {'results.json': '{"new": 1}'})
  mirror.push()
  assert copied == ['results.json']


def test_a_restart_copies_only_what_changed(memory, tmp_path, monkeypatch):
  write(tmp_path / 'a', FILES)
  opened(tmp_path / 'a', memory).push()
  fs = fsspec.filesystem('memory')
  fs.pipe_file('/bucket/run/stages/orphan', b'of a copy that was cut short')
  fs.pipe_file('/bucket/run/stages/sft/checkpoints/4/a', b'half')
  again, copied = opened(tmp_path / 'a', memory), []
  put = again._fs.put_file
  monkeypatch.setattr(
    again._fs, 'put_file', lambda path, to: (copied.append(to.split('run/')[1]), put(path, to))
  )
  write(tmp_path / 'a', {'results.json': '{"new": 1}'})
  again.push()
  assert copied == ['results.json', 'stages/sft/checkpoints/4/a']
  opened(tmp_path / 'b', memory)
  assert visible(tmp_path / 'b') == FILES | {'results.json': '{"new": 1}'}


def test_a_copy_cut_short_is_completed(memory, tmp_path, monkeypatch):
  write(tmp_path / 'a', FILES)
  opened(tmp_path / 'a', memory).push()
  write(tmp_path / 'a', {'results.json': '[1]', 'stages/sft/stage.json': '2'})
  cut = opened(tmp_path / 'a', memory)
  put = cut._fs.put_file

  def fail(path, to):
    if to.endswith('stage.json'):
      raise OSError('network is gone')
    put(path, to)

  monkeypatch.setattr(cut._fs, 'put_file', fail)
  with pytest.raises(UserError, match='network is gone'):
    cut.push()
  opened(tmp_path / 'a', memory).push()
  opened(tmp_path / 'b', memory)
  assert visible(tmp_path / 'b') == visible(tmp_path / 'a')


@pytest.mark.parametrize('name', ['results.json', store.MARK])
def test_a_folder_as_a_store_never_has_half_a_file(name, tmp_path, monkeypatch):
  url = f'file://{tmp_path / "store"}'
  write(tmp_path / 'a', FILES)
  opened(tmp_path / 'a', url).push()
  before = (tmp_path / 'store' / name).read_bytes()
  write(tmp_path / 'a', {'results.json': '[1, 2, 3]'})
  mirror, replace = opened(tmp_path / 'a', url), os.replace

  def fail(draft, path):
    if path == tmp_path / 'store' / name:
      raise OSError('killed here')
    replace(draft, path)

  monkeypatch.setattr(os, 'replace', fail)
  with pytest.raises(UserError, match='killed here'):
    mirror.push()
  assert (tmp_path / 'store' / name).read_bytes() == before
  monkeypatch.setattr(os, 'replace', replace)
  opened(tmp_path / 'a', url).push()
  opened(tmp_path / 'b', url)
  assert visible(tmp_path / 'b') == FILES | {'results.json': '[1, 2, 3]'}


def test_a_lost_lease_ends_the_copying(memory, tmp_path, monkeypatch):
  def run():
    with store.mirrored(memory, tmp_path / 'a', tmp_path / 'a' / 'stages'):
      write(tmp_path / 'a', FILES)
      held = in_memory(f'{memory}/{leases.NAME}')
      held.replace(b'{"seconds": 60}', held.read().version)
      monkeypatch.setattr(time, 'monotonic', lambda: math.inf)

  with pytest.raises(UserError, match='another run has taken it over'):
    run()
  assert not fsspec.filesystem('memory').exists('/bucket/run/results.json')


def test_deleted_checkpoints_leave_the_store(memory, tmp_path):
  write(tmp_path / 'a', FILES)
  mirror = opened(tmp_path / 'a', memory)
  mirror.push()
  shutil.rmtree(tmp_path / 'a/stages/sft/checkpoints')
  mirror.push()
  opened(tmp_path / 'b', memory)
  assert visible(tmp_path / 'b').keys() == {'results.json', 'stages/sft/stage.json'}


def test_the_same_machine_keeps_its_newer_files(memory, tmp_path):
  write(tmp_path / 'a', FILES)
  opened(tmp_path / 'a', memory).push()
  write(tmp_path / 'a', {'results.json': 'newer'})
  opened(tmp_path / 'a', memory).push()
  opened(tmp_path / 'b', memory)
  assert visible(tmp_path / 'b')['results.json'] == 'newer'


def test_a_folder_of_another_state_is_refused(memory, tmp_path):
  write(tmp_path / 'a', FILES)
  opened(tmp_path / 'a', memory).push()
  write(tmp_path / 'b', {'results.json': 'of another run'})
  with pytest.raises(UserError, match='different states'):
    opened(tmp_path / 'b', memory)
  assert visible(tmp_path / 'b') == {'results.json': 'of another run'}


def test_a_second_writer_is_noticed(memory, tmp_path):
  write(tmp_path / 'a', FILES)
  first = opened(tmp_path / 'a', memory)
  first.push()
  second = opened(tmp_path / 'b', memory)
  write(tmp_path / 'b', {'more.json': '1'})
  second.push()
  write(tmp_path / 'a', {'more.json': '2'})
  with pytest.raises(UserError, match='another run writes'):
    first.push()


def test_a_fetch_cut_short_is_done_again(memory, tmp_path, monkeypatch):
  write(tmp_path / 'a', FILES)
  opened(tmp_path / 'a', memory).push()
  cut = store.Mirror(tmp_path / 'b', memory)

  def fail(remote, name):
    write(tmp_path / 'b', {'results.json': '{}'})
    raise OSError('network is gone')

  monkeypatch.setattr(cut, '_get', fail)
  with pytest.raises(UserError, match='network is gone'):
    cut.fetch()
  opened(tmp_path / 'b', memory)
  assert visible(tmp_path / 'b') == FILES


@pytest.mark.parametrize(('error', 'copied'), [(Interrupted, True), (UserError, False)])
def test_a_stop_is_copied_and_an_error_is_not(error, copied, memory, tmp_path):

  def run():
    with store.mirrored(memory, tmp_path / 'a', tmp_path / 'stages'):
      write(tmp_path / 'a', {'results.json': '{}'})
      write(tmp_path / 'stages', {'sft/stage.json': '1'})
      raise error('why')

  with pytest.raises(error):
    run()
  with store.mirrored(memory, tmp_path / 'b', tmp_path / 'more'):
    assert (visible(tmp_path / 'b') == {'results.json': '{}'}) == copied
    assert (visible(tmp_path / 'more') == {'sft/stage.json': '1'}) == copied


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    (['--workdir=gs://bucket/run'], 'add --store=gs://bucket/run'),
    (['--stages=s3://bucket/run'], 'must be a local folder'),
    (['--store=ftp://bucket/run'], 'must start with gs://, s3:// or file://'),
    (['--store=bucket/run'], 'must start with gs://, s3:// or file://'),
  ],
)
def test_urls_that_are_no_stores_are_refused(flags, expected, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert main.main(['main', '--config=tabular', *flags]) == 2
  assert expected in capsys.readouterr().err


RUN = [sys.executable, '-m', 'nlhf_jax.main', *TOY.split()]


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_store(tmp_path):
  command = [*RUN, '--config.sft.evaluate_every=5']
  subprocess.run([*command, f'--workdir={tmp_path / "whole"}'], cwd=ROOT, check=True)
  stored = [*command, f'--workdir={tmp_path / "run"}', f'--store=file://{tmp_path / "store"}']
  program = subprocess.Popen(stored, cwd=ROOT)
  deadline = time.monotonic() + 300
  while not list((tmp_path / 'store').glob('stages/sft-*/checkpoints/manifest-*.json')):
    assert program.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.05)
  os.kill(program.pid, signal.SIGKILL)
  program.wait()
  shutil.rmtree(tmp_path / 'run')
  done = subprocess.run(stored, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
  assert 'sft: resuming in' in done.stdout
  for name in ('results.json', 'samples.jsonl'):
    assert (tmp_path / 'run' / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()
