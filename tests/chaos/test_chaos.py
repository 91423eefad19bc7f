"""Law: whatever interrupts a run, the same command ends with the same bits, or one sentence.

A sample of the cases that `make chaos` runs at full length, and the harness itself.
"""

import os
import random
import sys

import pytest

from tests.chaos import cases, damage, runs
from tests.chaos.ends import read_end
from tests.chaos.runs import Ended
from tests.chaos.small_disk import can_mount

SEED = 0
# Of the kinds below, by their places among all kinds.
KINDS = ('language', 'token_game')
SAMPLE = [('kills', 0), ('kills', 3), ('damage', 3), ('disks', 3)]


@pytest.fixture(scope='module')
def uncut(tmp_path_factory):
  """Uninterrupted runs."""
  with pytest.MonkeyPatch.context() as patch:
    cache = os.environ['JAX_COMPILATION_CACHE_DIR']
    for name, value in runs.environment(cache).items():
      patch.setenv(name, value)
    yield runs.run_uncut(tmp_path_factory.mktemp('uncut'), KINDS)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='processor time is read from /proc')
@pytest.mark.parametrize(('part', 'number'), SAMPLE)
def test_interrupted_run_ends_with_the_same_bits(part, number, uncut, tmp_path):
  if part == 'disks' and not can_mount():
    pytest.skip('only root can mount a small disk')
  case = cases.PARTS[part](SEED, number, tmp_path, uncut)
  assert case.kind in KINDS
  assert case.outcome not in cases.FAULTS, case
  if part == 'kills':
    assert case.kills > 0
    assert case.outcome == cases.IDENTICAL


def write_run(folder):
  """Files as of a run without stages."""
  (folder / 'policies').mkdir(parents=True)
  (folder / 'results.json').write_text('{"gap": 0.5, "seconds": 3.1}')
  (folder / 'metrics.jsonl').write_text('{"step": 1, "loss": 2.0, "seconds_per_step": 0.1}\n')
  (folder / 'policies' / 'responses.jsonl').write_text('{"prompt": "a"}\n')


def test_only_seconds_are_left_out_of_a_comparison(tmp_path):
  write_run(tmp_path / 'one')
  write_run(tmp_path / 'two')
  (tmp_path / 'two' / 'results.json').write_text('{"gap": 0.5, "seconds": 7}')
  assert read_end(tmp_path / 'one') == read_end(tmp_path / 'two')
  (tmp_path / 'two' / 'results.json').write_text('{"gap": 0.25, "seconds": 3.1}')
  (tmp_path / 'two' / 'metrics.jsonl').write_text('{"step": 1, "loss": 1.0}\n')
  one, two = read_end(tmp_path / 'one'), read_end(tmp_path / 'two')
  assert runs.differing(one, two) == ['metrics.jsonl', 'results.json']


@pytest.mark.parametrize('how', damage.HOW)
def test_damage_changes_exactly_one_file(how, tmp_path):
  write_run(tmp_path)
  before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
  victim = tmp_path / 'results.json'
  damage.damage(random.Random(1), victim, how)
  after = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
  assert {path for path in before if before[path] != after.get(path)} == {victim}


@pytest.mark.parametrize(
  ('status', 'printed', 'expected'),
  [
    (2, 'sft: 3\nerror: the disk is full.\n', cases.SENTENCE),
    (2, 'error: one\nerror: two\n', cases.CRASH),
    (0 - 11, '', cases.CRASH),
    (1, 'Traceback (most recent call last):\n', cases.TRACEBACK),
    (None, '', cases.HANGS),
  ],
)
def test_a_failure_is_told_from_a_sentence(status, printed, expected):
  assert cases.outcome_of_failure(Ended(status, printed, 1.0, 2.0)) == expected


def test_a_schedule_depends_on_seed_and_number_alone():
  first = [cases.draw('kills', 0, number)[0].random() for number in range(9)]
  assert first == [cases.draw('kills', 0, number)[0].random() for number in range(9)]
  assert first != [cases.draw('kills', 1, number)[0].random() for number in range(9)]
