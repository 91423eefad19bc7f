"""Law: the files of a model are read once, and a file that changed is read again."""

import hashlib
import os

import pytest

from nlhf_jax.storage import hub, model_files


@pytest.fixture
def model(tmp_path, monkeypatch):
  """A folder with a model of long ago; no digest is known."""
  monkeypatch.setattr(model_files, '_known', {})
  monkeypatch.setattr(model_files, '_kept', [])
  folder = tmp_path / 'model'
  folder.mkdir()
  for name in ('config.json', 'model.safetensors'):
    (folder / name).write_bytes(name.encode())
  monkeypatch.setattr(model_files.time, 'time', lambda: 4e9)
  return folder


def count_bytes(work):
  before = model_files.bytes_read()
  work()
  return model_files.bytes_read() - before


def test_a_fingerprint_is_of_the_contents(model):
  digests = [hashlib.sha256(path.read_bytes()).digest() for path in sorted(model.iterdir())]
  assert hub.fingerprint(str(model)) == hashlib.sha256(b''.join(digests)).hexdigest()


def test_the_next_start_reads_no_file_again(model, tmp_path, monkeypatch):
  model_files.keep_digests(tmp_path)
  size = sum(path.stat().st_size for path in model.iterdir())
  assert count_bytes(lambda: hub.fingerprint(str(model))) == size
  first = hub.fingerprint(str(model))
  monkeypatch.setattr(model_files, '_known', {})  # as in a new process
  model_files.keep_digests(tmp_path)
  assert count_bytes(lambda: hub.fingerprint(str(model))) == 0
  assert hub.fingerprint(str(model)) == first


def test_a_changed_file_is_read_again(model):
  before, path = hub.fingerprint(str(model)), model / 'config.json'
  status = path.stat()
  path.write_bytes(path.read_bytes()[::-1])
  os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # of the same size and time
  assert hub.fingerprint(str(model)) != before


def test_the_digest_of_a_young_file_is_not_kept(model, monkeypatch):
  path = model / 'config.json'
  monkeypatch.setattr(model_files.time, 'time', lambda: path.stat().st_ctime)
  assert count_bytes(lambda: model_files.sha256(path)) == path.stat().st_size
  assert count_bytes(lambda: model_files.sha256(path)) == path.stat().st_size


def test_kept_digests_that_are_damaged_are_computed_again(model, tmp_path):
  (tmp_path / model_files.FILE).write_text('{"cut')
  model_files.keep_digests(tmp_path)
  assert count_bytes(lambda: hub.fingerprint(str(model))) > 0


def test_a_folder_that_takes_no_file_is_no_obstacle(model, tmp_path):
  (tmp_path / 'file').write_text('')
  model_files.keep_digests(tmp_path / 'file')
  assert hub.fingerprint(str(model))
