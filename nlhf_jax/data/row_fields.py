"""Values of a row's fields, or the problem with them; nothing is guessed or rounded."""

import math
from collections.abc import Mapping
from typing import Any

from nlhf_jax.data.readers import Problem
from nlhf_jax.storage.texts import clean_text

MAX_TEXT = 2**20  # characters


def require_fields(row: Mapping, *fields: str) -> None:
  """Checks that a row has the fields."""
  for field in fields:
    if field not in row:
      raise Problem(f"field '{field}' is missing", f'; it has {list_names(row)}')


def list_names(row: Mapping) -> str:
  """The names of a row's fields, for messages."""
  names = sorted(map(str, row))
  return ascii(names[:20] + ['...'] * (len(names) > 20))[:400]


def check_text(name: str, value: Any) -> str:
  """The value, if it is a text that can be learned and written."""
  if not isinstance(value, str):
    raise Problem(f'{name} is not a string', f' but {type(value).__name__}')
  if not value.strip():
    raise Problem(f'{name} is empty')
  if len(value) > MAX_TEXT:
    raise Problem(f'{name} is longer than {MAX_TEXT:,} characters')
  if clean_text(value) != value:
    what = 'a null character' if '\0' in value else 'half of a surrogate pair'
    raise Problem(f'{name} holds {what}, which no text does')
  return value


def nested_text(value: Any, field: str, name: str = '') -> str:
  """The text of a field of a nested object."""
  name = name or f"field '{field}'"
  if not isinstance(value, Mapping) or field not in value:
    raise Problem(f'{name} is missing')
  return check_text(name, value[field])


def read_number(
  row: Mapping, field: str, least: int | float, most: int | float, whole: bool = False
) -> float:
  """The number of a field, in [least, most]."""
  require_fields(row, field)
  value = row[field]
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise Problem(f"field '{field}' is not a number", f' but {type(value).__name__}')
  if not (least <= value <= most and abs(value) < 1e300) or (whole and value != int(value)):
    limits = f' in [{least:g}, {most:g}]' if math.isfinite(most) else ''
    raise Problem(
      f"field '{field}' is not a {'whole ' if whole else ''}number{limits}", f': {repr(value)[:80]}'
    )
  return float(value)


def read_choice(row: Mapping, field: str, meanings: Mapping[int, float]) -> float:
  """The meaning of a field that holds one of a few numbers."""
  require_fields(row, field)
  value = row[field]
  if isinstance(value, bool) or not isinstance(value, int) or value not in meanings:
    raise Problem(
      f"field '{field}' is none of {', '.join(map(str, meanings))}", f': {repr(value)[:80]}'
    )
  return meanings[value]
