"""Leases: which run may write to a store, until it ends or falls silent.

A lease is an object in the store, which is only ever replaced by who knows its current version.
The holder renews it; one that is not renewed in its time may be taken over.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from nlhf_jax.errors import UserError, first_line

NAME = '.lease.json'
SECONDS = 60.0  # after which a lease that is not renewed may be taken over
PATIENCE = 20.0  # seconds for which a request is tried, about; half as much again at worst
SKEW = 60.0  # by which the clocks of this machine and of the store may differ


class Refused(Exception):
  """The object is not of the version that was to be replaced."""


class Stored(NamedTuple):
  """An object: its content, its version, and when it was written, seconds since 1970."""

  text: bytes
  version: Any
  since: float


class Place(NamedTuple):
  """One object of a store.

  `read()` is None if it is not there. `replace(text, version)` writes it if its version is still
  that, or if it is not there and `version` is None; it returns the new version, or raises
  `Refused`.
  """

  read: Callable[[], Stored | None]
  replace: Callable[[bytes, Any], Any]


class Lease:
  """The right of this run to write to a store.

  Args:
    url: of the folder in the store.
    holder: who holds it; a run that was killed and starts again under the same name need not wait.
    seconds: how long the lease holds unless it is renewed.
  """

  def __init__(self, url: str, holder: str, seconds: float = SECONDS):
    self._url, self._holder, self._seconds = url, holder, seconds
    self._place = PLACES[url.partition('://')[0]](f'{url.rstrip("/")}/{NAME}')
    self._lock, self._ended = threading.Lock(), threading.Event()
    self._lost, self._until, self._version = False, 0.0, None

  def take(self) -> None:
    """Takes the lease, once that of another run has expired, and renews it from then on.

    Raises:
      UserError: if another run holds the lease and renews it, or the store does not compare
        versions.
    """
    stored = self._wait_until_free()
    try:
      self._write(self._seconds, stored and stored.version)
    except Refused:
      raise self._held_by_another(self._place.read()) from None
    if not stored:
      with contextlib.suppress(Refused):
        self._place.replace(b'{}', None)
        raise UserError(
          f"the store '{self._url}' overwrites a file that must not be there, so that two runs "
          'would not be kept apart; use another store.'
        )
    threading.Thread(target=self._keep, daemon=True).start()

  def check(self) -> None:
    """Checks that this run still holds the lease.

    Raises:
      UserError: if another run has taken it over, or it could not be renewed in time.
    """
    if time.monotonic() > self._until:
      self._renew()  # after a pause in which no thread ran
    if self._lost or time.monotonic() > self._until:
      cause = 'another run has taken it over' if self._lost else 'the store does not answer'
      raise UserError(
        f"this run may no longer write to '{self._url}', because it was silent for "
        f'{self._seconds:g} s and {cause}; nothing more is copied there: end the other run, if '
        'there is one, and run the same command again.'
      )

  def release(self) -> None:
    """Lets others take the lease at once."""
    self._ended.set()
    with self._lock, contextlib.suppress(Exception):  # it expires by itself
      if not self._lost:
        self._write(0.0, self._version)

  def _wait_until_free(self) -> Stored | None:
    """Waits until the lease of another run ends; what is stored then."""
    stored = self._place.read()
    note = _parse(stored)
    seconds = note.get('seconds', 0)
    expired = stored and stored.since + seconds + SKEW < time.time()
    if not seconds or expired or note.get('holder') == self._holder:
      return stored
    print(
      f"'{self._url}' is held by a run on {note.get('host')}; waiting up to {seconds:g} s, after "
      'which that run counts as ended if it is silent.',
      flush=True,
    )
    end = time.monotonic() + seconds  # seen from here, clocks need not agree
    while (left := end - time.monotonic()) > 0:
      time.sleep(min(left, seconds / 10))
      now = self._place.read()
      if not now or not _parse(now).get('seconds'):  # released
        return now
      if now.version != stored.version:
        raise self._held_by_another(now)
    return stored

  def _held_by_another(self, stored: Stored | None) -> UserError:
    note = _parse(stored)
    return UserError(
      f"another run writes to '{self._url}' (process {note.get('process')} on {note.get('host')}); "
      'end one of the two, and give each run its own --store.'
    )

  def _keep(self) -> None:
    while not self._ended.wait(self._seconds / 3):
      self._renew()

  def _renew(self) -> None:
    """Renews the lease, or notes that it is lost. If the store does not answer, it does neither."""
    with self._lock:
      if self._lost or self._ended.is_set():
        return
      try:
        self._write(self._seconds, self._version)
      except Refused:
        self._lost = True
      except Exception as error:  # each store has its own kinds
        print(f"'{self._url}' cannot be reached ({first_line(error)}); trying again.", flush=True)

  def _write(self, seconds: float, version: Any) -> None:
    # With a number of its own, as stores give equal contents equal versions.
    nonce, began = secrets.token_hex(8), time.monotonic()
    note = {'holder': self._holder, 'nonce': nonce, 'seconds': seconds}
    note |= {'host': socket.gethostname(), 'process': os.getpid()}
    try:
      self._version = self._place.replace(json.dumps(note).encode(), version)
    except Exception:  # it may have been written although the answer was lost
      stored = self._place.read()
      if _parse(stored).get('nonce') != nonce:
        raise
      self._version = stored.version
    self._until = began + seconds


def _parse(stored: Stored | None) -> dict[str, Any]:
  """What a lease says; empty without one."""
  try:
    note = json.loads(stored.text) if stored else {}
  except ValueError:
    return {}
  return note if isinstance(note, dict) else {}


def _on_google(url: str) -> Place:
  from google.api_core import exceptions
  from google.cloud import storage
  from google.cloud.storage.retry import DEFAULT_RETRY

  bucket, _, name = url.partition('://')[2].partition('/')
  objects = storage.Client().bucket(bucket)
  tried = {'timeout': PATIENCE / 2, 'retry': DEFAULT_RETRY.with_timeout(PATIENCE)}

  def read():
    while blob := objects.get_blob(name, **tried):
      with contextlib.suppress(exceptions.NotFound):  # it was replaced since
        text = blob.download_as_bytes(**tried)
        return Stored(text, blob.generation, blob.updated.timestamp())
    return None

  def replace(text, version):
    blob = objects.blob(name)
    try:
      blob.upload_from_string(text, if_generation_match=version or 0, **tried)
    except exceptions.PreconditionFailed:
      raise Refused from None
    except exceptions.NotFound:
      raise FileNotFoundError(f'the bucket {bucket}') from None
    return blob.generation

  return Place(read, replace)


def _on_amazon(url: str) -> Place:
  import boto3
  from botocore.config import Config
  from botocore.exceptions import ClientError

  bucket, _, name = url.partition('://')[2].partition('/')
  wait, attempts = PATIENCE / 4, {'total_max_attempts': 3}
  config = Config(connect_timeout=wait, read_timeout=wait, retries=attempts)
  client, at = boto3.client('s3', config=config), {'Bucket': bucket, 'Key': name}

  def is_one_of(error, *statuses):
    there = error.response['Error']['Code'] != 'NoSuchBucket'
    return there and error.response['ResponseMetadata']['HTTPStatusCode'] in statuses

  def read():
    try:
      answer = client.get_object(**at)
    except ClientError as error:
      if is_one_of(error, 404):
        return None
      raise
    return Stored(answer['Body'].read(), answer['ETag'], answer['LastModified'].timestamp())

  def replace(text, version):
    condition = {'IfMatch': version} if version else {'IfNoneMatch': '*'}
    try:
      return client.put_object(**at, Body=text, **condition)['ETag']
    except ClientError as error:
      if is_one_of(error, 404, 409, 412):
        raise Refused from None
      raise

  return Place(read, replace)


def _on_disk(url: str) -> Place:
  path = Path(url.partition('://')[2])

  def read():
    if not path.exists():
      return None
    text = path.read_bytes()
    return Stored(text, text, path.stat().st_mtime)

  def replace(text, version):
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f'{path.name}.lock')):
      stored = read()
      if (stored and stored.version) != version:
        raise Refused
      draft = path.with_name(f'{path.name}.draft')
      draft.write_bytes(text)
      os.replace(draft, path)
    return text

  return Place(read, replace)


PLACES = {'gs': _on_google, 's3': _on_amazon, 'file': _on_disk}
