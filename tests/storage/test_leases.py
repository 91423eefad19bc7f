"""Law: one run at a time writes to a store, and one that is gone is succeeded in a minute."""

import contextlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.storage import leases
from nlhf_jax.storage.leases import Lease

SECONDS = 0.6  # of a lease; requests take milliseconds


@pytest.fixture
def disk(tmp_path):
  return f'file://{tmp_path}/store'


@pytest.fixture(
  params=[
    'disk',
    pytest.param('gs_bucket', marks=pytest.mark.slow),
    pytest.param('s3_bucket', marks=pytest.mark.slow),
  ]
)
def url(request):
  """The URL of an empty folder of each kind of store."""
  return f'{request.getfixturevalue(request.param)}/run'


def taken(url, holder='one'):
  lease = Lease(url, holder, SECONDS)
  lease.take()
  return lease


def silenced(url, holder='one'):
  """A lease whose run no longer renews it, as one that was killed."""
  lease = taken(url, holder)
  lease._ended.set()
  return lease


def test_a_second_run_is_refused_while_the_first_renews(url, capsys):
  first = taken(url)
  with pytest.raises(UserError, match=f'another run writes to .* .process {os.getpid()} on '):
    taken(url, 'two')
  assert f'waiting up to {SECONDS:g} s' in capsys.readouterr().out
  first.check()
  first.release()


def test_a_silent_run_is_succeeded_and_may_not_write(url):
  first = silenced(url)
  began = time.monotonic()
  second = taken(url, 'two')
  assert time.monotonic() - began >= SECONDS * 0.9
  second.check()
  first._ended.clear()  # it wakes up
  with pytest.raises(UserError, match='another run has taken it over'):
    first.check()
  second.check()
  second.release()


def test_a_released_lease_is_taken_at_once(url):
  taken(url).release()
  began = time.monotonic()
  taken(url, 'two').release()
  assert time.monotonic() - began < SECONDS / 2


def test_a_killed_run_of_the_same_folder_does_not_wait(url):
  silenced(url)
  began = time.monotonic()
  taken(url).release()
  assert time.monotonic() - began < SECONDS / 2


def test_one_of_many_runs_wins(url):
  barrier = threading.Barrier(8)

  def attempt(number):
    lease = Lease(url, str(number), SECONDS)
    barrier.wait()
    with contextlib.suppress(UserError):
      lease.take()
      return lease

  for _ in ('created', 'taken over'):
    with ThreadPoolExecutor(8) as threads:
      winners = [lease for lease in threads.map(attempt, range(8)) if lease]
    assert len(winners) == 1
    winners[0]._ended.set()


def test_a_lease_of_long_ago_is_not_waited_for(disk, tmp_path):
  taken(disk)._ended.set()
  path = tmp_path / 'store' / leases.NAME
  path.write_text(json.dumps(json.loads(path.read_text()) | {'seconds': 3600}))
  os.utime(path, (0, 0))
  taken(disk, 'two').release()


class Careless:
  """A store that replaces whatever is there."""

  text = None

  def place(self, url):
    def replace(text, version):
      self.text = text
      return text

    return leases.Place(
      lambda: self.text and leases.Stored(self.text, self.text, time.time()), replace
    )


def test_a_store_that_compares_no_versions_is_refused(monkeypatch):
  monkeypatch.setitem(leases.PLACES, 'careless', Careless().place)
  with pytest.raises(UserError, match='use another store'):
    taken('careless://bucket')


def test_a_lost_answer_is_read_back(disk, monkeypatch):
  lease = taken(disk)
  replace = lease._place.replace

  def answer_lost(text, version):
    replace(text, version)
    raise TimeoutError

  lease._place = lease._place._replace(replace=answer_lost)
  lease._renew()
  lease._place = lease._place._replace(replace=replace)
  lease._renew()
  lease.check()
  lease.release()


def test_without_answers_the_lease_ends(disk, capsys):
  lease = taken(disk)
  lease._place = leases.Place(lambda: None, lambda text, version: 1 / 0)
  time.sleep(SECONDS * 1.2)
  with pytest.raises(UserError, match='the store does not answer'):
    lease.check()
  assert 'cannot be reached (division by zero)' in capsys.readouterr().out
  lease.release()
