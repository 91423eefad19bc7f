"""Answers of an endpoint, kept on disk under what was asked: nothing is asked, or paid, twice.

SQLite in its default mode: an answer is on the disk once `put` returns, a kill leaves the file
whole, and any number of processes may use it at the same time, on one machine or on several whose
file system has locks.
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

PATIENCE = 60.0  # seconds to wait for another process that writes


def request_digest(url: str, request: Mapping[str, Any]) -> str:
  """The name of a question: a digest of the endpoint and of the whole request to it.

  The request has the model, every message and all that says how the answer is sampled.
  """
  return hashlib.sha256(json.dumps([url, request], sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def open_cache(path: Path) -> Iterator[sqlite3.Connection]:
  """The cache in a file, made if need be; to be used in the thread that opened it.

  Raises:
    UserError: if the file cannot be used, then or later.
  """
  try:
    with contextlib.closing(sqlite3.connect(path, PATIENCE, isolation_level=None)) as connection:
      connection.execute(
        'CREATE TABLE IF NOT EXISTS answers (name TEXT PRIMARY KEY, answer TEXT) WITHOUT ROWID'
      )
      yield connection
  except sqlite3.Error as error:
    raise UserError(
      f"cannot keep the judge's answers in '{path}' ({first_line(error)}); make room there, or "
      'name another file.'
    ) from None


def get(connection: sqlite3.Connection, name: str) -> Answer | None:
  """What was answered to a question, if it was."""
  row = connection.execute('SELECT answer FROM answers WHERE name = ?', (name,)).fetchone()
  return row and Answer(*json.loads(row[0]))


def put(connection: sqlite3.Connection, name: str, answer: Answer) -> Answer:
  """Keeps an answer; the first one counts, where another process was faster. Returns that one."""
  row = (name, json.dumps(answer))
  connection.execute('INSERT INTO answers VALUES (?, ?) ON CONFLICT DO NOTHING', row)
  return get(connection, name) or answer
