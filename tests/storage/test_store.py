"""Law: a run whose folder is lost resumes from its store, and ends with the same bits."""

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
from tests import emulators
from tests.test_distributed import ROOT, TOY


@pytest.fixture
def memory(monkeypatch):
  """The URL of an empty store in memory."""
  monkeypatch.setitem(store.EXTRAS, 'memory', None)
  monkeypatch.setitem(leases.PLACES, 'memory', in_memory)
  fs = fsspec.filesystem('memory')
  fs.store.clear()
  return 'memory://bucket'


BUCKETS = [pytest.param(name, marks=pytest.mark.slow) for name in ('gs_bucket', 's3_bucket')]


@pytest.fixture(params=['memory', *BUCKETS])
def url(request):
  """The URL of an empty folder of each kind of store."""
  return f'{request.getfixturevalue(request.param)}/run'


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
# Names and contents that a store may take for something else.
ODD = {'policies/1 #2%3F+é.jsonl': 'é', 'empty.jsonl': ''}


def opened(folder, url):
  mirror = store.Mirror(folder, url)
  mirror.fetch()
  return mirror


def test_a_lost_folder_comes_back(url, tmp_path):
  write(tmp_path / 'a', FILES | ODD | {'programs/big': 'not copied', '.lock': ''})
  opened(tmp_path / 'a', url).push()
  opened(tmp_path / 'b', f'{url}/')
  assert visible(tmp_path / 'b') == FILES | ODD


def test_only_changes_are_copied_notes_last(url, tmp_path, monkeypatch):
  write(tmp_path / 'a', FILES)
  mirror, copied = opened(tmp_path / 'a', url), []
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


def test_a_restart_copies_only_what_changed(url, tmp_path, monkeypatch):
  write(tmp_path / 'a', FILES)
  opened(tmp_path / 'a', url).push()
  fs, root = store.connect(url)
  fs.pipe_file(f'{root}/stages/orphan', b'of a copy that was cut short')
  fs.pipe_file(f'{root}/stages/sft/checkpoints/4/a', b'half')
  again, copied = opened(tmp_path / 'a', url), []
  put = again._fs.put_file
  monkeypatch.setattr(
    again._fs, 'put_file', lambda path, to: (copied.append(to.split('run/')[1]), put(path, to))
  )
  write(tmp_path / 'a', {'results.json': '{"new": 1}'})
  again.push()
  assert copied == ['results.json', 'stages/sft/checkpoints/4/a']
  opened(tmp_path / 'b', url)
  assert visible(tmp_path / 'b') == FILES | {'results.json': '{"new": 1}'}


def test_a_copy_cut_short_is_completed(url, tmp_path, monkeypatch):
  write(tmp_path / 'a', FILES)
  opened(tmp_path / 'a', url).push()
  write(tmp_path / 'a', {'results.json': '[1]', 'stages/sft/stage.json': '2'})
  cut = opened(tmp_path / 'a', url)
  put = cut._fs.put_file

  def fail(path, to):
    if to.endswith('stage.json'):
      raise OSError('network is gone')
    put(path, to)

  monkeypatch.setattr(cut._fs, 'put_file', fail)
  with pytest.raises(UserError, match='network is gone'):
    cut.push()
  opened(tmp_path / 'a', url).push()
  opened(tmp_path / 'b', url)
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


def test_a_lost_lease_ends_the_copying(url, tmp_path, monkeypatch):
  held = []

  def lease(*given):
    held.append(leases.Lease(*given))
    return held[0]

  monkeypatch.setattr(store, 'Lease', lease)

  def run():
    with store.mirrored(url, tmp_path / 'a', tmp_path / 'a' / 'stages'):
      write(tmp_path / 'a', FILES)
      place = leases.PLACES[url.partition('://')[0]](f'{url}/{leases.NAME}')
      place.replace(b'{"seconds": 60}', place.read().version)
      held[0]._until = 0.0  # as after a pause

  with pytest.raises(UserError, match='another run has taken it over'):
    run()
  fs, root = store.connect(url)
  assert not fs.exists(f'{root}/results.json')


def test_deleted_checkpoints_leave_the_store(url, tmp_path):
  write(tmp_path / 'a', FILES)
  mirror = opened(tmp_path / 'a', url)
  mirror.push()
  shutil.rmtree(tmp_path / 'a/stages/sft/checkpoints')
  mirror.push()
  opened(tmp_path / 'b', url)
  assert visible(tmp_path / 'b').keys() == {'results.json', 'stages/sft/stage.json'}


def test_the_same_machine_keeps_its_newer_files(url, tmp_path):
  write(tmp_path / 'a', FILES)
  opened(tmp_path / 'a', url).push()
  write(tmp_path / 'a', {'results.json': 'newer'})
  opened(tmp_path / 'a', url).push()
  opened(tmp_path / 'b', url)
  assert visible(tmp_path / 'b')['results.json'] == 'newer'


def test_a_folder_of_another_state_is_refused(url, tmp_path):
  write(tmp_path / 'a', FILES)
  opened(tmp_path / 'a', url).push()
  write(tmp_path / 'b', {'results.json': 'of another run'})
  with pytest.raises(UserError, match='different states'):
    opened(tmp_path / 'b', url)
  assert visible(tmp_path / 'b') == {'results.json': 'of another run'}


def test_a_second_writer_is_noticed(url, tmp_path):
  write(tmp_path / 'a', FILES)
  first = opened(tmp_path / 'a', url)
  first.push()
  second = opened(tmp_path / 'b', url)
  write(tmp_path / 'b', {'more.json': '1'})
  second.push()
  write(tmp_path / 'a', {'more.json': '2'})
  with pytest.raises(UserError, match='another run writes'):
    first.push()


def test_a_fetch_cut_short_is_done_again(url, tmp_path, monkeypatch):
  write(tmp_path / 'a', FILES)
  opened(tmp_path / 'a', url).push()
  cut = store.Mirror(tmp_path / 'b', url)

  def fail(remote, name):
    write(tmp_path / 'b', {'results.json': '{}'})
    raise OSError('network is gone')

  monkeypatch.setattr(cut, '_get', fail)
  with pytest.raises(UserError, match='network is gone'):
    cut.fetch()
  opened(tmp_path / 'b', url)
  assert visible(tmp_path / 'b') == FILES


@pytest.mark.parametrize(('error', 'copied'), [(Interrupted, True), (UserError, False)])
def test_a_stop_is_copied_and_an_error_is_not(error, copied, url, tmp_path):

  def run():
    with store.mirrored(url, tmp_path / 'a', tmp_path / 'stages'):
      write(tmp_path / 'a', {'results.json': '{}'})
      write(tmp_path / 'stages', {'sft/stage.json': '1'})
      raise error('why')

  with pytest.raises(error):
    run()
  with store.mirrored(url, tmp_path / 'b', tmp_path / 'more'):
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


def refusal(url, tmp_path, capsys):
  """The sentence with which a run with this store ends."""
  flags = [f'--workdir={tmp_path / "run"}', f'--store={url}']
  assert main.main(['main', '--config=tabular', *flags]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  return line


@pytest.mark.slow
@pytest.mark.parametrize(
  ('bucket', 'reason'),
  [('gs_bucket', 'not found: the bucket bucket-'), ('s3_bucket', 'bucket does not exist')],
)
def test_a_bucket_that_is_not_there_is_a_sentence(bucket, reason, request, tmp_path, capsys):
  url = f'{request.getfixturevalue(bucket)}-missing/run'
  sentence = refusal(url, tmp_path, capsys)
  assert sentence.startswith(f"error: the store '{url}' cannot be used (")
  assert reason in sentence


@pytest.mark.slow
@pytest.mark.parametrize(
  ('bucket', 'variable'),
  [('gs_bucket', 'STORAGE_EMULATOR_HOST'), ('s3_bucket', 'AWS_ENDPOINT_URL')],
)
def test_a_store_that_does_not_answer_is_a_sentence(
  bucket, variable, request, tmp_path, capsys, monkeypatch
):
  url = f'{request.getfixturevalue(bucket)}/run'
  monkeypatch.setenv(variable, f'http://127.0.0.1:{emulators.free_port()}')
  began = time.monotonic()
  sentence = refusal(url, tmp_path, capsys)
  assert sentence.startswith(f"error: the store '{url}' cannot be used (")
  assert time.monotonic() - began < 2 * leases.PATIENCE


@pytest.mark.slow
@pytest.mark.parametrize(
  ('bucket', 'without', 'reason'),
  [
    ('gs_bucket', ['STORAGE_EMULATOR_HOST'], 'was not found'),
    ('s3_bucket', ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'], 'Unable to locate credentials'),
  ],
)
def test_missing_credentials_are_a_sentence(
  bucket, without, reason, request, tmp_path, capsys, monkeypatch
):
  url = f'{request.getfixturevalue(bucket)}/run'
  for name in without:
    monkeypatch.delenv(name)
  monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true')
  places = 'GOOGLE_APPLICATION_CREDENTIALS', 'AWS_SHARED_CREDENTIALS_FILE', 'AWS_CONFIG_FILE'
  for name in places:
    monkeypatch.setenv(name, str(tmp_path / 'none'))
  sentence = refusal(url, tmp_path, capsys)
  assert sentence.startswith(f"error: the store '{url}' cannot be used (")
  assert reason in sentence


@pytest.mark.parametrize(('url', 'extra'), [('gs://b/run', 'gcs'), ('s3://b/run', 's3')])
def test_a_missing_extra_is_a_sentence(url, extra, tmp_path, monkeypatch, capsys):
  for name in ('google.cloud', 'gcsfs', 'boto3', 's3fs'):
    monkeypatch.setitem(sys.modules, name, None)
  expected = f"error: --store='{url}' needs the packages of the extra {extra}; install them"
  assert refusal(url, tmp_path, capsys).startswith(expected)


RUN = [sys.executable, '-m', 'nlhf_jax.main', *TOY.split(), '--config.sft.evaluate_every=5']


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The work directory of a run that is not stopped."""
  folder = tmp_path_factory.mktemp('whole')
  subprocess.run([*RUN, f'--workdir={folder}'], cwd=ROOT, check=True)
  return folder


@pytest.mark.slow
@pytest.mark.parametrize(
  ('place', 'kill'),
  [
    ('disk', signal.SIGKILL),
    ('gs_bucket', signal.SIGTERM),
    ('s3_bucket', signal.SIGKILL),
  ],
)
def test_a_stopped_run_resumes_from_its_store(place, kill, whole, request, tmp_path):
  url = f'file://{tmp_path}' if place == 'disk' else request.getfixturevalue(place)
  command = [*RUN, f'--workdir={tmp_path / "run"}', f'--store={url}/store']
  program = subprocess.Popen(command, cwd=ROOT)
  emulators.wait_for_checkpoint(f'{url}/store', [program])
  program.send_signal(kill)
  assert program.wait() == (130 if kill == signal.SIGTERM else -kill)
  shutil.rmtree(tmp_path / 'run')
  done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
  assert 'sft: resuming in' in done.stdout
  for name in ('results.json', 'samples.jsonl'):
    assert (tmp_path / 'run' / name).read_bytes() == (whole / name).read_bytes()
