"""Defers Ctrl-C and SIGTERM until the work can be saved."""

import contextlib
import signal
from collections.abc import Iterator

from nlhf_jax import distributed
from nlhf_jax.errors import Interrupted

_requested: list[int] = []  # signals received; a process has one set of handlers


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Within this context, the first signal requests a stop; a second one interrupts at once."""

  def request(number, frame):
    if _requested:
      signal.default_int_handler(number, frame)
    _requested.append(number)
    print('\nStopping at the next safe point; interrupt again to stop at once.', flush=True)

  before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield
  finally:
    _requested.clear()
    for number, handler in before.items():
      signal.signal(number, handler)


def requested() -> bool:
  """Whether a stop was requested."""
  return bool(_requested)


def check(place: str) -> None:
  """Raises `Interrupted`, naming the place reached, if a stop was requested."""
  if distributed.any_process(requested()):
    raise Interrupted(place)
