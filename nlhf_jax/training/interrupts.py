"""Ctrl-C and SIGTERM, held back until the work is at a place where it can be saved."""

import contextlib
import signal
from collections.abc import Iterator

from nlhf_jax import distributed
from nlhf_jax.errors import Interrupted

_requested: list[int] = []  # signals received; a process has one set of handlers


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Within it, the first signal only asks to stop; a second one interrupts at once."""

  def ask(number, frame):
    if _requested:
      signal.default_int_handler(number, frame)
    _requested.append(number)
    print('\nStopping at the next safe place; once more to stop at once.', flush=True)

  before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield
  finally:
    _requested.clear()
    for number, handler in before.items():
      signal.signal(number, handler)


def requested() -> bool:
  """Whether the user asked to stop."""
  return bool(_requested)


def check(place: str) -> None:
  """Raises `Interrupted` with the place reached, if the user asked to stop."""
  if distributed.any_process(requested()):
    raise Interrupted(place)
