"""Ranges of numbers, declared where an argument is: `def nash_md_pg(beta: Fraction, ...)`.

To type checkers an annotation is the plain type. `check` refuses values outside of the ranges that
a function, or a NamedTuple, declares for its arguments; `declared` returns these.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from nlhf_jax.errors import UserError


class Range(NamedTuple):
  """The values that an argument may take: `contains(value)`, and `text` for "must be ...".

  Comparisons with NaN are false, so that a `contains` made of comparisons refuses it.
  """

  text: str
  contains: Callable[[Any], bool]


MOST = 2**31  # indices on devices have 32 bits
AT_LEAST_ONE = Range('at least 1, and below 2^31', lambda value: 1 <= value < MOST)
AT_LEAST_TWO = Range('at least 2, and below 2^31', lambda value: 2 <= value < MOST)
COUNT = Range('at least 0, and below 2^31', lambda value: 0 <= value < MOST)
FINITE = Range('finite', lambda value: -math.inf < value < math.inf)
NON_NEGATIVE = Range('at least 0, and finite', lambda value: 0 <= value < math.inf)
POSITIVE = Range('above 0, and finite', lambda value: 0 < value < math.inf)
FRACTION = Range('in [0, 1]', lambda value: 0 <= value <= 1)
POSITIVE_FRACTION = Range('in (0, 1]', lambda value: 0 < value <= 1)
PROPER_FRACTION = Range('in (0, 1)', lambda value: 0 < value < 1)
BELOW_ONE = Range('in [0, 1)', lambda value: 0 <= value < 1)
BELOW_HALF = Range('in [0, 1/2)', lambda value: 0 <= value < 0.5)
SEED = Range('in [0, 2^32)', lambda value: 0 <= value < 2**32)

AtLeastOne = Annotated[int, AT_LEAST_ONE]
AtLeastTwo = Annotated[int, AT_LEAST_TWO]
Count = Annotated[int, COUNT]
Finite = Annotated[float, FINITE]
NonNegative = Annotated[float, NON_NEGATIVE]
Positive = Annotated[float, POSITIVE]
Fraction = Annotated[float, FRACTION]
PositiveFraction = Annotated[float, POSITIVE_FRACTION]
ProperFraction = Annotated[float, PROPER_FRACTION]
BelowOne = Annotated[float, BELOW_ONE]
BelowHalf = Annotated[float, BELOW_HALF]
Seed = Annotated[int, SEED]


@functools.cache
def declared(declaration: Callable) -> dict[str, Range]:
  """Name -> range of those arguments of a function, or fields of a NamedTuple, that declare one."""
  found = {}
  for name, parameter in inspect.signature(declaration).parameters.items():
    for note in getattr(parameter.annotation, '__metadata__', ()):
      if isinstance(note, Range):
        found[name] = note
  return found


def check(declaration: Callable, values: Any, field: str) -> None:
  """Refuses values outside of the ranges that a function or a NamedTuple declares.

  Args:
    declaration: the function or NamedTuple.
    values: name -> value, a mapping or a section of a config. Names without a declared range are
      not checked.
    field: where the values come from, such as `config.sft`.

  Raises:
    UserError: that names the field, the value and the range.
  """
  for name, allowed in declared(declaration).items():
    if name in values and not allowed.contains(values[name]):
      raise UserError(f'{field}.{name}={values[name]} must be {allowed.text}.')
