"""Answers of a judge, stored on disk by request, so that no request is sent or paid for twice.

SQLite in its default mode: an answer is on disk once `put` returns, or the `transaction` around it
ends; a kill leaves the file intact, and several processes may use it at the same time, on one
machine or on several that share a file system with locks.
"""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nlhf_jax.errors import UserError, first_line
from nlhf_jax.judges.verdicts import Answer

LOCK_TIMEOUT = 60.0  # seconds to wait for another process that writes


def request_digest(url: str, request: Mapping[str, Any]) -> str:
  """The key of a request in the cache: a digest of the endpoint and of all fields.

  The fields include the model, every message, and how the answer is sampled.
  """
  return hashlib.sha256(json.dumps([url, request], sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def open_cache(path: Path) -> Iterator[sqlite3.Connection]:
  """Opens the cache, or creates it; only the thread that opened the connection may use it.

  Raises:
    UserError: if the file cannot be used, now or later.
  """
  try:
    with contextlib.closing(
      sqlite3.connect(path, LOCK_TIMEOUT, isolation_level=None)
    ) as connection:
      connection.execute(
        'CREATE TABLE IF NOT EXISTS answers (name TEXT PRIMARY KEY, answer TEXT) WITHOUT ROWID'
      )
      connection.text_factory = bytes  # a damaged row may be no UTF-8
      yield connection
  except sqlite3.Error as error:
    remedy = 'move that file away, whose answers are then requested again'
    if isinstance(error, sqlite3.OperationalError):  # the disk is at fault, not the file
      remedy = 'make room there'
    raise UserError(
      f"cannot store the judge's answers in '{path}' ({first_line(error)}); {remedy}, and run "
      'again.'
    ) from None


def get(connection: sqlite3.Connection, name: str) -> Answer | None:
  """The stored answer to a request, if there is one.

  Raises:
    ValueError: if it is damaged; it is removed.
  """
  row = connection.execute('SELECT answer FROM answers WHERE name = ?', (name,)).fetchone()
  if row is None:
    return None
  try:
    *fields, digest = json.loads(row[0])
    if digest == _digest(fields):
      return Answer(*fields)
  except (ValueError, TypeError):
    pass
  remove(connection, name)
  raise ValueError('damaged')


def remove(connection: sqlite3.Connection, name: str) -> None:
  """Removes the stored answer to a request, which is then sent again."""
  connection.execute('DELETE FROM answers WHERE name = ?', (name,))


def put(connection: sqlite3.Connection, name: str, answer: Answer) -> Answer:
  """Stores an answer unless another process stored one first; returns the stored one."""
  row = (name, json.dumps([*answer, _digest(list(answer))]))
  connection.execute('INSERT INTO answers VALUES (?, ?) ON CONFLICT DO NOTHING', row)
  return get(connection, name) or answer


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
  """Everything that the block stores is on disk when it ends, by one write instead of many."""
  connection.execute('BEGIN IMMEDIATE')
  try:
    yield
  finally:
    connection.execute('COMMIT')


def _digest(fields: list) -> str:
  return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]
