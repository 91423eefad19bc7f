"""Functions that are made by calls, named by them, so that a record of functions can be read."""

import functools
from collections.abc import Callable
from typing import Any


def named(make: Callable) -> Callable:
  """What `make` gives is called as the call was written: `ema(0.02)`."""

  @functools.wraps(make)
  def call(*values, **words):
    made = make(*values, **words)
    said = [shown(value) for value in values]
    said += [f'{word}={shown(value)}' for word, value in words.items()]
    made.__name__ = f'{make.__name__}({", ".join(said)})'
    return made

  return call


def shown(value: Any) -> str:
  """A function by its name, a number in few digits."""
  if isinstance(value, tuple):
    return f'({", ".join(map(shown, value))})'
  if callable(value):
    return getattr(value, '__name__', str(value))
  return f'{value:.3g}' if isinstance(value, float) else str(value)
