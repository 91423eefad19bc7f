"""Judges that are Python functions of texts, which configs name as FILE.py:function.

The function is called in this process, with lists of texts; what it returns is stored on disk, as
the answers of an endpoint are, so that no question is asked twice. Of several processes only the
first calls it.
"""

import functools
import importlib
import inspect
import sys
import traceback
import types
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nlhf_jax import distributed
from nlhf_jax.errors import Interrupted, UserError
from nlhf_jax.judges import answer_cache
from nlhf_jax.judges.function import check_values
from nlhf_jax.judges.judge import judge_from_texts
from nlhf_jax.judges.kinds import ExternalKind, judge_by_texts
from nlhf_jax.judges.verdicts import Answer
from nlhf_jax.storage.texts import printable

BATCH = 256  # questions in one call of the function
EXCERPT = 80  # characters of a text that a message repeats
WRITTEN = 'FILE.py:function or module:function'

Row = tuple[str, ...]  # prompt and response, or prompt, left and right


class OwnFunction(NamedTuple):
  """A user's function of texts, and what its stages and stored values are found by.

  `call(prompts, left, right)` returns P(left > right), or with `rewards` `call(prompts, responses)`
  a reward, of n rows each. `settings` are its source text and its version.
  """

  written: str  # in the config
  name: str
  call: Callable[..., Any]
  rewards: bool
  settings: dict[str, Any]


# --- Loading ---


def load_function(written: str) -> OwnFunction:
  """The function that a config names.

  Raises:
    UserError: if there is none, or it cannot be used.
  """
  what = f"the judge '{written}'"
  function = find_function(written, what)
  rewards = _gives_rewards(function, written)
  name = written.rpartition(':')[2]
  return OwnFunction(written, name, function, rewards, source_settings(function, what))


def find_function(written: str, what: str) -> Callable:
  """The function that is written FILE.py:function or module:function; `what` is its use.

  Raises:
    UserError: if there is none.
  """
  place, _, name = written.rpartition(':')
  if not place or not name.isidentifier():
    raise UserError(f'{what} must be written {WRITTEN}.')
  function = getattr(_load_module(place, what), name, None)
  if not callable(function):
    raise UserError(f"{what}: '{place}' has no function '{name}'.")
  return function


def _load_module(place: str, what: str) -> types.ModuleType:
  path, in_file = Path(place), place.endswith('.py')
  if not in_file and not all(part.isidentifier() for part in place.split('.')):
    raise UserError(f'{what} must be written {WRITTEN}.')
  try:
    text = path.read_bytes() if in_file else b''
  except OSError as error:
    reason = error.strerror
    raise UserError(f"{what}: '{place}' cannot be read ({reason}).") from None
  try:
    _add_to_path(path.parent if in_file else Path())
    return _run_file(path.absolute(), text) if in_file else importlib.import_module(place)
  except (Exception, SystemExit) as error:
    raise UserError(f"{what}: '{place}' cannot be imported ({describe_error(error)}).") from None


def _add_to_path(folder: Path) -> None:
  """The modules beside the function can be imported, after all others."""
  if str(folder.absolute()) not in sys.path:
    sys.path.append(str(folder.absolute()))


@functools.lru_cache
def _run_file(path: Path, text: bytes) -> types.ModuleType:
  """The module of a file with this text."""
  module = types.ModuleType(f'own_judges.{path.stem}')
  module.__file__ = str(path)
  sys.modules[module.__name__] = module  # where dataclasses look for their module
  exec(compile(text, str(path), 'exec'), module.__dict__)
  return module


def _gives_rewards(function: Callable, written: str) -> bool:
  """Whether it takes (prompts, responses), and not (prompts, left, right)."""
  try:
    parameters = list(inspect.signature(function).parameters.values())
  except (TypeError, ValueError):
    parameters = []
  needed = [it for it in parameters if it.default is it.empty and it.kind != it.VAR_KEYWORD]
  positional = all(
    it.kind in (it.POSITIONAL_ONLY, it.POSITIONAL_OR_KEYWORD) for it in needed
  ) and not inspect.iscoroutinefunction(function)
  if not positional or len(needed) not in (2, 3):
    raise UserError(
      f"the judge '{written}' must be a plain function of (prompts, left, right), which returns "
      'P(left is preferred), or of (prompts, responses), which returns rewards.'
    )
  return len(needed) == 2


def source_settings(function: Callable, what: str) -> dict[str, Any]:
  """What stages know a function by: its source text and its version.

  Raises:
    UserError: if it has neither.
  """
  version = getattr(function, 'version', None)
  if not isinstance(version, str | int | float | None):
    raise UserError(f'{what}: its `version` must be a text or a number.')
  try:
    return {'source': inspect.getsource(function), 'version': version}
  except (OSError, TypeError):
    if version is None:
      raise UserError(
        f'{what} has no source text to tell it by; give it an attribute `version`.'
      ) from None
    return {'source': None, 'version': version}


# --- Calling ---


def _call(function: OwnFunction, rows: Sequence[Row]) -> np.ndarray:
  """The numbers of some rows, [n].

  Raises:
    UserError: names the function and the row that it fails on.
  """
  try:
    returned = function.call(*map(list, zip(*rows, strict=True)))
  except (Exception, SystemExit) as error:
    if len(rows) > 1:  # the row that fails on its own; without any, the first one
      for row in rows:
        _call(function, [row])
    raise UserError(
      f"the judge '{function.name}' failed on {_describe_row(rows[0])}: {describe_error(error)}."
    ) from None
  place = lambda index: _describe_row(rows[index])
  return check_values(function.name, returned, len(rows), place, function.rewards)


def _describe_row(row: Row) -> str:
  prompt, *responses = (
    repr(printable(text if len(text) <= EXCERPT else f'{text[:EXCERPT]}...')) for text in row
  )
  return f'the prompt {prompt} and the response{"s" * (len(row) > 2)} {" and ".join(responses)}'


def describe_error(error: BaseException) -> str:
  """The kind of an error, the first line of its message, and where it was raised."""
  text = next(iter(str(error).splitlines()), '').rstrip('.')
  frames = traceback.extract_tb(error.__traceback__)
  where = f', line {frames[-1].lineno} of {Path(frames[-1].filename).name}'
  where = '' if isinstance(error, SyntaxError) else where  # its message names the line
  return printable(f'{type(error).__name__}{f": {text}" if text else ""}{where}')


def make_ask(
  function: OwnFunction, cache: Path, stop: Callable[[], bool], counts: Counter[str]
) -> Callable[[Sequence[Row]], np.ndarray]:
  """A function from rows of texts to the numbers of the user's function, [n], which are stored.

  NaN, no verdict, is not stored.

  Args:
    function: is called for rows that have no stored number.
    cache: file of the stored numbers.
    stop: whether the user asked to stop.
    counts: counts rows `asked`, `cached`, and those of the former `without_verdict`.
  """

  def look_up(connection, row) -> float | None:
    try:
      answer = answer_cache.get(connection, key(row))
      return answer and float(answer.text)
    except ValueError:
      return None  # damaged, and removed

  def key(row):
    return answer_cache.request_digest(function.name, {**function.settings, 'row': row})

  def ask(rows):
    values = {}
    with answer_cache.open_cache(cache) as connection:
      for row in dict.fromkeys(rows):
        if (value := look_up(connection, row)) is not None:
          values[row] = value
      new = [row for row in dict.fromkeys(rows) if row not in values]
      counts['cached'] += len(values)
      for begin in range(0, len(new), BATCH):
        if stop():
          raise Interrupted(f"asking the judge '{function.name}', {begin} of {len(new)} questions")
        chunk = new[begin : begin + BATCH]
        found = dict(zip(chunk, _call(function, chunk).tolist(), strict=True))
        judged = {row: value for row, value in found.items() if value == value}
        with answer_cache.transaction(connection):
          for row, value in judged.items():
            stored = answer_cache.put(connection, key(row), Answer(repr(value), {}))
            found[row] = float(stored.text)  # another process may have been first
        counts['asked'] += len(found)
        counts['without_verdict'] += len(found) - len(judged)
        values |= found
    return np.array([values[row] for row in rows])

  return ask


def make_kind(function: OwnFunction) -> ExternalKind:
  """The kind of judge that a user's function is.

  Of two rewards the higher one wins, whatever their scale; equal ones are a tie, as equal responses
  are. Algorithms that learn from rewards take the difference.
  """

  def make(section, folder, stop):
    folder.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    ask = make_ask(function, folder / 'functions.sqlite', stop, counts)

    def differences(prompts, left, right):
      sides = ask([*zip(prompts, left, strict=True), *zip(prompts, right, strict=True)])
      return sides[: len(prompts)] - sides[len(prompts) :]

    def probabilities(prompts, left, right):
      rows = list(zip(prompts, left, right, strict=True))
      differ = np.array([row[1] != row[2] for row in rows], bool)
      values = np.full(len(rows), 0.5)
      values[differ] = ask([row for row in rows if row[1] != row[2]])
      return values

    def on_first(work):
      def measured(prompts, *sides):
        return distributed.compute_on_first(lambda: work(prompts, *sides), (len(prompts),))

      return measured

    about, used = printable(function.written), lambda: {name: n for name, n in counts.items() if n}
    if not function.rewards:
      return judge_by_texts(about, on_first(probabilities), used)
    rewards = on_first(differences)
    judge = judge_by_texts(about, lambda *texts: 0.5 + np.sign(rewards(*texts)) / 2, used)
    return judge._replace(
      make_rewards=lambda tokenizer: judge_from_texts(rewards, tokenizer, tie=0.0)
    )

  settings = lambda section: function.settings
  return ExternalKind(function.name, make, settings, rewards=function.rewards)
