"""Data and models in a store are downloaded once a machine, completely or not at all."""

import json
import os
import sys
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
def cache(monkeypatch, tmp_path):
  """The folder of an empty cache."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


@pytest.fixture
def memory(monkeypatch, cache):
  """The URL of an empty store in memory; with an empty cache."""
  monkeypatch.setitem(store.EXTRAS, 'memory', None)
  fsspec.filesystem('memory').store.clear()
  return 'memory://bucket'


BUCKETS = [pytest.param(name, marks=pytest.mark.slow) for name in ('gs_bucket', 's3_bucket')]


@pytest.fixture(params=['memory', *BUCKETS])
def url(request, cache):
  """The URL of an empty store of each kind; with an empty cache."""
  return request.getfixturevalue(request.param)


def fill(url, files):
  fs, root = store.connect(url)
  for name, content in files.items():
    fs.pipe_file(f'{root}/{name}', content)


@pytest.fixture
def downloaded(monkeypatch):
  """The names that were downloaded."""
  names, get = [], store_inputs._get
  monkeypatch.setattr(
    store_inputs, '_get', lambda *given: (names.append(given[2].name), get(*given))
  )
  return names


def test_a_model_is_downloaded_once(url, downloaded):
  fill(url, MODEL)
  folder = hub.locate(url, ['config.json'])
  assert downloaded == ['config.json']
  assert hub.locate(f'{url}/') == folder
  for _ in range(2):
    assert hub.locate(url) == folder
  # Neither what is not read nor what is hidden.
  assert sorted(downloaded) == ['config.json', 'model.safetensors', 'tokenizer.json']
  os.truncate(folder / 'model.safetensors', 100)
  hub.locate(url)
  for name in ('config.json', 'tokenizer.json', 'model.safetensors'):
    assert (folder / name).read_bytes() == MODEL[name]


def test_a_changed_model_is_another_one(url):
  fill(url, MODEL)
  before = hub.locate(url)
  time.sleep(0.01)
  fill(url, {'model.safetensors': bytes(299) + b'x'})
  after = hub.locate(url)
  assert (before / 'model.safetensors').read_bytes() == bytes(300)
  assert (after / 'model.safetensors').read_bytes()[-1:] == b'x'
  assert hub.fingerprint(url) == hub.fingerprint(str(after))


@pytest.mark.parametrize(
  ('name', 'split', 'files'),
  [
    ('folder', 'train', ['train.jsonl']),
    ('folder', 'test', ['x.jsonl']),
    ('folder/train.jsonl', '', ['train.jsonl']),
  ],
)
def test_data_are_found_as_in_a_local_folder(name, split, files, url, downloaded):
  fill(url, ROWS)
  found = sources.locate(f'{url}/{name}', split)
  assert [file.name for file in found.files] == files
  assert found.name == f'{url}/{name}'
  assert 'notes.md' not in downloaded
  rows = [row for _, _, row in sources.read_rows(found, ['a'])]
  assert rows == [json.loads(ROWS[f'folder/{"test/" * (split == "test")}{files[0]}'])]


def test_a_download_that_is_cut_short_leaves_nothing(memory, cache, monkeypatch):
  fill(memory, MODEL)
  kind = type(fsspec.filesystem('memory'))
  get = kind.get_file

  def cut(self, remote, path):
    get(self, remote, path)
    if remote.endswith('.safetensors'):
      os.truncate(path, 200)

  monkeypatch.setattr(kind, 'get_file', cut)
  with pytest.raises(UserError, match=r'200 of 300 bytes arrived; run the same command again'):
    hub.locate(memory)
  left = [path.name for path in cache.rglob('*') if path.is_file()]
  assert not any('safetensors' in name for name in left)
  monkeypatch.setattr(kind, 'get_file', get)
  assert (hub.locate(memory) / 'model.safetensors').read_bytes() == bytes(300)


def test_a_download_that_is_damaged_leaves_nothing(memory, cache, monkeypatch):
  fill(memory, MODEL)
  kind = type(fsspec.filesystem('memory'))
  find = kind.find

  def with_digests(self, *given, **more):
    found = find(self, *given, **more)
    return {name: info | {'md5Hash': 'AAAAAAAAAAAAAAAAAAAAAA=='} for name, info in found.items()}

  monkeypatch.setattr(kind, 'find', with_digests)
  with pytest.raises(UserError, match=r'config.json. was damaged on its way'):
    hub.locate(memory, ['config.json'])
  assert not [path for path in cache.rglob('config.json*') if path.is_file()]


@pytest.mark.parametrize('find', [hub.locate, lambda url: sources.locate(url, '')])
def test_what_is_not_there_is_a_sentence(find, url):
  with pytest.raises(UserError, match=f"='{url}/x': the store has no such file"):
    find(f'{url}/x')


@pytest.mark.slow
@pytest.mark.parametrize('bucket', ['gs_bucket', 's3_bucket'])
def test_a_bucket_that_is_not_there_is_a_sentence(bucket, request, cache):
  url = f'{request.getfixturevalue(bucket)}-missing'
  with pytest.raises(UserError, match=f"'{url}/x'") as refused:
    hub.locate(f'{url}/x')
  assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(('url', 'extra'), [('gs://b/m', 'gcs'), ('s3://b/m', 's3')])
def test_a_missing_extra_is_a_sentence(url, extra, monkeypatch):
  for name in ('gcsfs', 's3fs'):
    monkeypatch.setitem(sys.modules, name, None)
  for name in ('gs', 's3'):  # what fsspec has imported before
    monkeypatch.delitem(sys.modules['fsspec.registry']._registry, name, raising=False)
  with pytest.raises(UserError, match=f"config.model.hf='{url}' needs .* of the extra {extra}"):
    hub.locate(url)
