"""Large files need little memory, and a killed run resumes with the same batches."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nlhf_jax.data import token_store
from nlhf_jax.tasks.summaries import generator

ROOT = Path(__file__).parents[2]
WORDS = generator.vocabulary()


pytestmark = pytest.mark.skipif(
  not Path('/proc/self/status').exists(), reason='only Linux tells the peak of one program'
)


def write(path, count):
  """Graded comparisons of many lengths, in words of the embedded task."""
  chance = random.Random(0)
  with path.open('w') as file:
    for number in range(count):
      lengths = (40 if chance.random() < 0.03 else chance.randint(2, 10) for _ in range(3))
      post, left, right = (' '.join(chance.choices(WORDS, k=length)) for length in lengths)
      row = {'prompt': f'{number} {post}', 'left': left, 'right': f'{right} .'}
      file.write(json.dumps(row | {'preference': chance.randint(0, 10) / 10}) + '\n')
  return path


def start(path, folder, steps, size):
  folder.mkdir(exist_ok=True)
  program = [sys.executable, ROOT / 'tests' / 'data' / 'streaming.py']
  return subprocess.Popen(
    [*program, path, folder, str(steps), str(size)],
    cwd=ROOT,
    env={'PYTHONPATH': str(ROOT), 'PATH': '', 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  printed, wrong = process.communicate(timeout=1800)
  assert process.returncode == 0, wrong
  return json.loads(printed.splitlines()[-1])


def kill(process, when):
  """Kills the process once `when()` holds; returns whether it was still alive."""
  while not when():
    if process.poll() is not None:
      return False
    time.sleep(0.001)
  process.send_signal(signal.SIGKILL)
  return process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_hundred_thousand_comparisons_need_two_gigabytes(tmp_path):
  path = write(tmp_path / 'many.jsonl', 100_000)
  found = finish(start(path, tmp_path / 'run', 390, 256))  # all of them, once
  assert found['train'] == 99_000
  assert found['peak'] < 2e9


@pytest.fixture(scope='module')
def few(tmp_path_factory):
  """A file, and the batches of a run that is not killed."""
  folder = tmp_path_factory.mktemp('few')
  path = write(folder / 'few.jsonl', 6_000)
  finish(start(path, folder / 'run', 300, 32))
  return path, (folder / 'run' / 'batches').read_text()


def test_a_killed_run_resumes_with_the_same_batches(few, tmp_path):
  path, expected = few
  noted = tmp_path / 'batches'
  drafts = lambda: any(file.stat().st_size for file in tmp_path.glob('.data-*.draft/*.tokens'))
  assert kill(start(path, tmp_path, 300, 32), drafts)  # while texts are tokenised
  assert not list(tmp_path.glob('data-*'))
  for count in (40, 150):
    seen = lambda count=count: noted.exists() and noted.read_text().count('\n') >= count
    assert kill(start(path, tmp_path, 300, 32), seen)
    assert noted.read_text().count('\n') < 300
  noted.write_text(noted.read_text().rpartition('\n')[0] + '\n')  # an incomplete last line
  finish(start(path, tmp_path, 300, 32))
  assert noted.read_text() == expected
  assert not list(tmp_path.glob('.data-*.draft'))


def test_incomplete_stored_tokens_are_rebuilt(tmp_path):
  folder, made = tmp_path / 'kept', []

  def write(draft):
    made.append(draft)
    (draft / 'tokens').write_bytes(b'12345678')
    (draft / token_store.ACCOUNT).write_text(json.dumps({'sizes': {'tokens': 8}}))

  def again():
    before = len(made)
    token_store.write_once(folder, write)
    assert token_store.is_complete(folder)
    return len(made) > before

  assert again()
  assert not again()
  (folder / 'tokens').write_bytes(b'1234')
  assert again()
  (folder / 'tokens').unlink()
  assert again()
  (folder / token_store.ACCOUNT).write_text('{"sizes"')
  assert again()
  (folder / token_store.ACCOUNT).unlink()
  assert again()
  assert not again()


def test_a_failed_write_leaves_nothing(tmp_path):
  def write(draft):
    (draft / 'tokens').write_bytes(b'1234')
    raise RuntimeError('a bug')

  with pytest.raises(RuntimeError, match='a bug'):
    token_store.write_once(tmp_path / 'kept', write)
  assert [file.name for file in tmp_path.iterdir()] == ['.kept.lock']
