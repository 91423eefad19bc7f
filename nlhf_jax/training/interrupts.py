"""Defers Ctrl-C and SIGTERM until the work can be saved.

Of several processes, JAX passes a SIGTERM that any of them gets on to all, and names the point at
which all stop. Ctrl-C in one of them is sent on as SIGTERM.
"""

import contextlib
import os
import signal
from collections.abc import Iterator

import jax

from nlhf_jax import distributed
from nlhf_jax.errors import Interrupted

_requested: list[int] = []  # signals received; a process has one set of handlers
_reached: list[bool] = []  # not empty once several processes have reached the point to stop at


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Within this context, the first signal requests a stop; a second one interrupts at once.

  With several processes only a second Ctrl-C does; further SIGTERMs are without effect.
  """
  several = jax.process_count() > 1

  def request(number, frame):
    if _requested:
      signal.default_int_handler(number, frame)
    _requested.append(number)
    print('\nStopping at the next safe point; interrupt again to stop at once.', flush=True)
    if several:
      os.kill(os.getpid(), signal.SIGTERM)

  # A handler of our own for SIGTERM would replace JAX's.
  numbers = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
  before = {number: signal.signal(number, request) for number in numbers}
  try:
    yield
  finally:
    _requested.clear()
    _reached.clear()
    for number, handler in before.items():
      signal.signal(number, handler)


def requested() -> bool:
  """Whether a stop was requested, as far as this process knows."""
  return bool(_requested) or (jax.process_count() > 1 and distributed.is_stop_announced())


def stop_reached() -> bool:
  """Whether to stop here. Of several processes, all must call this, and get the same answer."""
  if jax.process_count() == 1:
    return requested()
  if not _reached and distributed.reached_stop():
    _reached.append(True)
  return bool(_reached)


def check(place: str) -> None:
  """Raises `Interrupted`, naming the place reached, if this is the place to stop.

  Of several processes, all must call this.
  """
  if stop_reached():
    raise Interrupted(place)
