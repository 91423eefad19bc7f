"""Data and models in a store are downloaded once a machine, completely or not at all."""

import importlib.util
import json
import os
import time

import fsspec
import pytest

from nlhf_jax.data import sources
from nlhf_jax.errors import UserError
from nlhf_jax.storage import hub, store, store_inputs

ROWS = {'folder/train.jsonl': b'{"a": 1}\n', 'folder/test/x.jsonl': b'{}\n', 'folder/notes.md': b''}
MODEL = {'config.json': b'{}', 'tokenizer.json': b'{"t": 1}', 'model.safetensors': bytes(300)}
MODEL |= {'pytorch_model.bin': b'pickled', '.git/config.json': b'{}'}


@pytest.fixture
def bucket(monkeypatch, tmp_path):
  """A store in memory, as fsspec has it, and an empty cache."""
  monkeypatch.setitem(store.EXTRAS, 'memory', None)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  fs = fsspec.filesystem('memory')
  fs.store.clear()
  return fs


def fill(bucket, files, root='/bucket/'):
  for name, content in files.items():
    bucket.pipe_file(root + name, content)


@pytest.fixture
def downloaded(monkeypatch):
  """The names that were downloaded."""
  names, get = [], store_inputs._get
  monkeypatch.setattr(
    store_inputs, '_get', lambda *given: (names.append(given[2].name), get(*given))
  )
  return names


def test_a_model_is_downloaded_once(bucket, downloaded):
  fill(bucket, MODEL)
  folder = hub.locate('memory://bucket', ['config.json'])
  assert downloaded == ['config.json']
  assert hub.locate('memory://bucket/') == folder
  for _ in range(2):
    assert hub.locate('memory://bucket') == folder
  # Neither what is not read nor what is hidden.
  assert sorted(downloaded) == ['config.json', 'model.safetensors', 'tokenizer.json']
  os.truncate(folder / 'model.safetensors', 100)
  hub.locate('memory://bucket')
  for name in ('config.json', 'tokenizer.json', 'model.safetensors'):
    assert (folder / name).read_bytes() == MODEL[name]


def test_a_changed_model_is_another_one(bucket):
  fill(bucket, MODEL)
  before = hub.locate('memory://bucket')
  time.sleep(0.01)
  fill(bucket, {'model.safetensors': bytes(299) + b'x'})
  after = hub.locate('memory://bucket')
  assert (before / 'model.safetensors').read_bytes() == bytes(300)
  assert (after / 'model.safetensors').read_bytes()[-1:] == b'x'
  assert hub.fingerprint('memory://bucket') == hub.fingerprint(str(after))


@pytest.mark.parametrize(
  ('name', 'split', 'files'),
  [
    ('folder', 'train', ['train.jsonl']),
    ('folder', 'test', ['x.jsonl']),
    ('folder/train.jsonl', '', ['train.jsonl']),
  ],
)
def test_data_are_found_as_in_a_local_folder(name, split, files, bucket, downloaded):
  fill(bucket, ROWS)
  found = sources.locate(f'memory://bucket/{name}', split)
  assert [file.name for file in found.files] == files
  assert found.name == f'memory://bucket/{name}'
  assert 'notes.md' not in downloaded
  rows = [row for _, _, row in sources.read_rows(found, ['a'])]
  assert rows == [json.loads(ROWS[f'folder/{"test/" * (split == "test")}{files[0]}'])]


def test_a_download_that_is_cut_short_leaves_nothing(bucket, tmp_path, monkeypatch):
  fill(bucket, MODEL)
  get = type(bucket).get_file

  def cut(self, remote, path):
    get(self, remote, path)
    if remote.endswith('.safetensors'):
      os.truncate(path, 200)

  monkeypatch.setattr(type(bucket), 'get_file', cut)
  with pytest.raises(UserError, match=r'200 of 300 bytes arrived; run the same command again'):
    hub.locate('memory://bucket')
  left = [path.name for path in (tmp_path / 'cache').rglob('*') if path.is_file()]
  assert not any('safetensors' in name for name in left)
  monkeypatch.setattr(type(bucket), 'get_file', get)
  assert (hub.locate('memory://bucket') / 'model.safetensors').read_bytes() == bytes(300)


def test_a_download_that_is_damaged_leaves_nothing(bucket, tmp_path, monkeypatch):
  fill(bucket, MODEL)
  find = type(bucket).find

  def with_digests(self, *given, **more):
    found = find(self, *given, **more)
    return {name: info | {'md5Hash': 'AAAAAAAAAAAAAAAAAAAAAA=='} for name, info in found.items()}

  monkeypatch.setattr(type(bucket), 'find', with_digests)
  with pytest.raises(UserError, match=r'config.json. was damaged on its way'):
    hub.locate('memory://bucket', ['config.json'])
  assert not [path for path in (tmp_path / 'cache').rglob('config.json*') if path.is_file()]


@pytest.mark.parametrize('find', [hub.locate, lambda url: sources.locate(url, '')])
def test_what_is_not_there_is_a_sentence(find, bucket):
  with pytest.raises(UserError, match=r"='memory://bucket/x': the store has no such file"):
    find('memory://bucket/x')


@pytest.mark.skipif(bool(importlib.util.find_spec('gcsfs')), reason='the extra gcs is installed')
def test_a_missing_extra_is_a_sentence():
  with pytest.raises(UserError, match=r"config.model.hf='gs://b/m' needs .* of the extra gcs"):
    hub.locate('gs://b/m')
