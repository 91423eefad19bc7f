"""Functions that carry the call that made them, so that an algorithm can be printed."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Described:
  """A function and its description, such as `policy_gradient(reference=0.06)`.

  Not a NamedTuple, since `jax.jit` takes no tuple for a function.
  """

  function: Callable
  description: str

  def __call__(self, *args):
    return self.function(*args)


def described(make: Callable[..., Callable]) -> Callable[..., Described]:
  """Decorates a factory: what it returns is described by the call, with numbers in few digits."""

  @functools.wraps(make)
  def call(*args, **kwargs):
    shown = [*map(describe, args), *(f'{name}={describe(it)}' for name, it in kwargs.items())]
    return Described(make(*args, **kwargs), f'{make.__name__}({", ".join(shown)})')

  return call


def describe(value: Any) -> str:
  """The description of a function, rule or number."""
  if hasattr(value, 'description'):
    return value.description
  if isinstance(value, tuple):
    return f'({", ".join(map(describe, value))})'
  if callable(value):
    return getattr(value, '__name__', str(value))
  return f'{value:.3g}' if isinstance(value, float) else str(value)
