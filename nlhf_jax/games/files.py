"""Reads preference games from CSV, JSON and NPY files."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nlhf_jax.errors import UserError
from nlhf_jax.games.tables import Table, from_counts, from_payoffs, from_preferences
from nlhf_jax.ranges import NonNegative, Positive

ENTRIES = ('probabilities', 'payoffs', 'counts')
KEYS = {'probabilities': 'probabilities', 'payoffs': 'payoffs', 'wins': 'counts'}  # of JSON
MISSING = ('', 'na', 'nan')
LISTS = (
  'left,right,left_wins,right_wins (and ties if there are any), left,right,winner, or those of '
  "Chatbot Arena's battles, model_a,model_b,winner"
)
# The columns of both sides of a list -> the columns of its counts, and the optional one of ties.
SIDES = {
  ('left', 'right'): ('left_wins', 'right_wins', 'ties'),
  ('model_a', 'model_b'): ('winner_model_a', 'winner_model_b', 'winner_tie'),
}
TIES = ('tie', 'tiebothbad', 'bothbad')  # without spaces and punctuation


class Contents(NamedTuple):
  """The contents of a file: square matrices of one of the kinds `ENTRIES`."""

  kind: str
  values: np.ndarray
  ties: np.ndarray | None = None
  names: Sequence[str] = ()
  notes: tuple[str, ...] = ()


def read(
  path: str | Path,
  entries: str = 'probabilities',
  tolerance: NonNegative = 1e-6,
  scale: Positive = 1.0,
  prior: NonNegative = 0.0,
) -> Table:
  """Reads the game in a file, by its extension; text is UTF-8.

  .csv: a square matrix, with or without names in its first row and column, where an empty cell is
    missing. Or a list of pairs with the header left,right,left_wins,right_wins, and perhaps ties;
    or of votes with the header left,right,winner, which is a name, 'left', 'right' or 'tie'. Or
    battles as Chatbot Arena publishes them: model_a,model_b,winner, which is a name, 'model_a',
    'model_b', 'tie' or 'tie (bothbad)', or with winner_model_a,winner_model_b,winner_tie.
  .json: a matrix or a list of them, one a prompt, where null is missing; or an object with such
    `probabilities`, `payoffs` or `wins` (perhaps with `ties`), and perhaps `names`; or a list of
    objects with the columns of a list above.
  .jsonl: such objects, one per line.
  .npy: an array, [K, K] or [X, K, K].

  Args:
    path: the file.
    entries: the kind of the numbers, one of `ENTRIES`; not used for lists and JSON objects, which
      declare their kind.
    tolerance: see `from_preferences` and `from_payoffs`.
    scale: see `from_payoffs`; must be 1 for other kinds.
    prior: see `from_counts`; must be 0 for other kinds.

  Raises:
    UserError: that names the file, the position in it, the problem and the remedy.
  """
  path = Path(path)
  readers = {'.csv': read_csv, '.json': read_json, '.jsonl': read_json, '.npy': read_npy}
  ending = path.suffix.lower()
  if entries not in ENTRIES:
    raise UserError(f"entries='{entries}' must be one of {', '.join(ENTRIES)}.")
  if ending not in readers:
    raise UserError(f"'{path}' is of an unknown kind; give a .csv, .json, .jsonl or .npy file.")
  try:
    data = path.read_bytes()
  except OSError as error:
    raise UserError(
      f"cannot read '{path}': {error.strerror}; give a .csv, .json, .jsonl or .npy file."
    ) from None
  try:
    if not data.removeprefix(b'\xef\xbb\xbf').strip():
      raise UserError('the file is empty; give one with preferences in it.')
    return table_from_contents(readers[ending](data, entries), tolerance, scale, prior)
  except UserError as error:
    raise UserError(f'{path}: {error}') from None


def table_from_contents(file: Contents, tolerance: float, scale: float, prior: float) -> Table:
  """The game of the contents of a file.

  Raises:
    UserError: also for a `scale` or a `prior` that does not apply to the kind of entries.
  """
  for name, value, unset, kind in (('scale', scale, 1, 'payoffs'), ('prior', prior, 0, 'counts')):
    if value != unset and file.kind != kind:
      raise UserError(
        f'{name}={value:g} is for {kind}, and these are {file.kind}; leave it at {unset}, or call '
        f'the numbers {kind} if they are that (entries={kind}).'
      )
  if file.kind == 'counts':
    table = from_counts(file.values, file.ties, prior, file.names)
  elif file.kind == 'payoffs':
    table = from_payoffs(file.values, tolerance, scale, file.names)
  else:
    table = from_preferences(file.values, tolerance, file.names)
  return table._replace(notes=file.notes + table.notes)


def read_npy(data: bytes, entries: str) -> Contents:
  """Reads an array of numbers that `numpy.save` wrote; refuses pickled objects."""
  try:
    values = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
  except Exception as error:  # a broken header can raise what Python's parser can
    raise UserError(f'no array of numbers ({error}); write it with numpy.save.') from None
  if values.dtype.kind not in 'iuf':
    raise UserError(f'the array is of dtype {values.dtype}; save real numbers, such as float64.')
  return Contents(entries, values.astype(float))


def read_json(data: bytes, entries: str) -> Contents:
  """Reads nested lists, an object that declares their kind, or a list of pairs or votes."""
  value = parse_json(decode_text(data))
  if isinstance(value, list) and value and isinstance(value[0], dict):
    return read_list(*rows_of_objects(value))
  if isinstance(value, list):
    return Contents(entries, parse_matrices(value))
  found = value.keys() if isinstance(value, dict) else set()
  kind = found & KEYS.keys()
  if len(kind) != 1 or found - kind - {'names'} - ({'ties'} if 'wins' in kind else set()):
    raise UserError(
      'give a list of rows, or an object with one of probabilities, payoffs or wins, with ties if '
      f'there are any beside wins, and with names if there are any; it has {sorted(found)}.'
    )
  names = value.get('names', [])
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise UserError('names must be a list of strings.')
  (key,) = kind
  ties = parse_matrices(value['ties']) if 'ties' in value else None
  return Contents(KEYS[key], parse_matrices(value[key]), ties, names)


def parse_json(text: str) -> object:
  """The value of a text, or the list of its lines' values."""
  try:
    lines = [line for line in text.split('\n') if line.strip()]
    if len(lines) > 1 and all(line.strip()[0] == '{' for line in lines):
      return [json.loads(line) for line in lines]
    value = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(f'not valid JSON ({error}); correct it.') from None
  is_row = isinstance(value, dict) and any(set(pair) <= value.keys() for pair in SIDES)
  return [value] if is_row else value


def rows_of_objects(objects: list) -> tuple[list[str], list[tuple[str, dict]]]:
  """The columns, and (place, cells by column) of each object; a missing cell is empty."""
  for number, one in enumerate(objects, start=1):
    if not isinstance(one, dict):
      raise UserError(f'row {number} is {json.dumps(one):.40}; it must be an object, as row 1 is.')
  columns = list(dict.fromkeys(name.lower() for one in objects for name in one))
  rows = [
    (f'row {number}', {name.lower(): cell_text(cell) for name, cell in one.items()})
    for number, one in enumerate(objects, start=1)
  ]
  return columns, [(place, dict.fromkeys(columns, '') | cells) for place, cells in rows]


def cell_text(value: object) -> str | None:
  """A JSON value as a cell of a CSV file has it; None for what no cell holds."""
  if isinstance(value, str):
    return value.strip()
  if value is None:
    return ''
  return None if isinstance(value, bool | list | dict) else json.dumps(value)


def parse_matrices(value: object) -> np.ndarray:
  """The numbers of a list of rows, or of a list of those."""
  first = value[0] if isinstance(value, list) and value else None
  if not (isinstance(first, list) and first and isinstance(first[0], list)):
    return np.array(parse_matrix(value, ''))
  grids = [parse_matrix(rows, f'prompt {number}, ') for number, rows in enumerate(value, start=1)]
  for number, rows in enumerate(grids, start=1):
    if len(rows) != len(grids[0]):
      raise UserError(
        f'prompt {number} has {len(rows)} actions, but prompt 1 has {len(grids[0])}; give all '
        'prompts the same.'
      )
  return np.array(grids)


def parse_matrix(rows: object, where: str) -> list[list[float]]:
  """The numbers of a square list of rows."""
  if not isinstance(rows, list) or not rows:
    raise UserError(f'{where}{json.dumps(rows):.40} must be a list of rows.')
  for number, row in enumerate(rows, start=1):
    if not isinstance(row, list) or len(row) != len(rows):
      what = f'has length {len(row)}' if isinstance(row, list) else f'is {json.dumps(row):.40}'
      raise UserError(
        f'{where}row {number} {what}; it must be a list as long as there are rows, {len(rows)}.'
      )
  return [
    [parse_number(cell, f'{where}row {i}, column {j}') for j, cell in enumerate(row, start=1)]
    for i, row in enumerate(rows, start=1)
  ]


def parse_number(cell: object, where: str) -> float:
  """The number in a cell, NaN if it is missing."""
  if cell is None or (isinstance(cell, str) and cell.lower() in MISSING):
    return np.nan
  try:
    if not isinstance(cell, bool | list | dict):
      return float(cell)
  except (ValueError, OverflowError):
    pass
  raise UserError(f'{where}: {json.dumps(cell):.40} is not a number; correct it.')


def decode_text(data: bytes) -> str:
  """Decodes UTF-8 text, without a byte-order mark."""
  try:
    return data.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise UserError(f'not UTF-8 (byte {error.start + 1}); save it as UTF-8.') from None


def read_csv(data: bytes, entries: str) -> Contents:
  """Reads a matrix, or a list of pairs or votes."""
  csv.field_size_limit(2**31 - 1)  # battles may contain whole conversations
  reader = csv.reader(io.StringIO(decode_text(data), newline=''), strict=True)
  try:
    lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
  except csv.Error as error:
    raise UserError(f'line {reader.line_num}: not valid CSV ({error}); correct it.') from None
  # A row of empty cells belongs to a matrix; a blank line does not.
  lines = [(line, row) for line, row in lines if len(row) > 1 or any(row)] or [(1, [''])]
  first, header = lines[0]
  for line, row in lines:
    if len(row) != len(header):
      raise UserError(
        f'line {line} has length {len(row)}, but line {first} has {len(header)}; give all lines '
        'the same number of cells.'
      )
  if len(header) == 1:
    raise UserError(f'line {first} is one cell; separate cells by commas.')
  columns = [cell.lower() for cell in header]
  # A matrix may have actions of these names; beside an empty corner they are its columns and rows.
  square = not header[0] and header[1:] == [row[0] for _, row in lines[1:]]
  if any(set(pair) <= set(columns) for pair in SIDES) and not square:
    if len(set(columns)) < len(columns):
      raise UserError(
        f'a list needs the header {LISTS}; it has {",".join(columns)}, with a column twice.'
      )
    rows = [(f'line {line}', dict(zip(columns, row, strict=True))) for line, row in lines[1:]]
    return read_list(columns, rows)
  return read_matrix(lines, entries)


def read_matrix(lines: list[tuple[int, list[str]]], entries: str) -> Contents:
  """Reads a square matrix, with or without names."""
  rows = [row for _, row in lines]
  header, index = find_names(rows)
  columns = rows[0][index:] if header else []
  names = [row[0] for row in rows[header:]] if index else columns
  body = lines[header:]
  if len(body) != len(rows[0]) - index:
    raise UserError(
      f'{len(body)} rows of {len(rows[0]) - index} numbers are not square; give a row and a column '
      f'to each action, or a list with the header {LISTS}.'
    )
  for number, (row, column) in enumerate(zip(names, columns, strict=False), start=1):
    if row != column:
      raise UserError(
        f"row {number} is '{row}', but column {number} is '{column}'; give rows and columns the "
        'same names in the same order.'
      )
  values = [
    [
      parse_number(cell, f'line {line}, cell {number}')
      for number, cell in enumerate(row[index:], start=index + 1)
    ]
    for line, row in body
  ]
  return Contents(entries, np.array(values), names=names)


def find_names(rows: list[list[str]]) -> tuple[bool, bool]:
  """Whether the first row and the first column are names: most are words, or both are equal."""
  corner, top, side = rows[0][0], rows[0][1:], [row[0] for row in rows[1:]]
  unnumbered = not corner or is_word(corner)
  same = unnumbered and top == side and '' not in top and len(set(top)) == len(top) > 1
  header = same or sum(map(is_word, top)) > len(top) / 2
  index = same or sum(map(is_word, side)) > len(side) / 2
  # An empty corner means that there are names beside it and below it.
  return header or (index and not corner), index or (header and not corner)


def is_word(cell: str) -> bool:
  """Whether a cell is neither a number nor missing."""
  try:
    parse_number(cell, '')
  except UserError:
    return True
  return False


def read_list(
  columns: Sequence[str], rows: Sequence[tuple[str, dict[str, str | None]]]
) -> Contents:
  """Reads pairs with counts, or one vote per row; counts of the same pair are added.

  Args:
    columns: names, in lower case.
    rows: the place of each row, for messages, and its cells by column; None is no text.
  """
  sides = [pair for pair in SIDES if set(pair) <= set(columns)]
  votes = 'winner' in columns
  counted = [pair for pair in sides if set(SIDES[pair][:2]) <= set(columns)]
  if len(sides) != 1 or votes == bool(counted):
    raise UserError(f'a list needs the header {LISTS}; it has {",".join(columns)}.')
  (pair,) = sides
  used = ['winner'] if votes else [name for name in SIDES[pair] if name in columns]
  names, found = {}, []
  for place, cells in rows:
    odd = next((name for name in (*pair, *used) if cells[name] is None), None)
    if odd:
      raise UserError(f"{place}: '{odd}' is neither a text nor a number; correct it.")
    left, right = (cells[side] for side in pair)
    if left == right or not left or not right:
      raise UserError(
        f"{place}: '{left}' against '{right}' must be two names; correct it, or remove it."
      )
    i, j = (names.setdefault(name, len(names)) for name in (left, right))
    if votes:
      found.append((i, j, *parse_vote(pair, (left, right), cells['winner'], place)))
    else:
      found.append((i, j, *(parse_count(cells[name], f'{place}, {name}') for name in used)))
  if not found:
    raise UserError('the list has no line below its header; give it pairs.')
  # A list without ties has none.
  i, j, left_wins, right_wins, *tied = np.array(found).T
  at = i.astype(int), j.astype(int)
  wins, ties = np.zeros((2, len(names), len(names)))
  np.add.at(wins, at, left_wins)
  np.add.at(wins, at[::-1], right_wins)
  for number in tied:
    np.add.at(ties, at, number)
    np.add.at(ties, at[::-1], number)
  unused = [name for name in columns if name and name not in (*pair, *used)]
  notes = (f'Columns not used: {", ".join(unused)}.',) if unused else ()
  return Contents('counts', wins, ties, tuple(names), notes)


def parse_vote(
  pair: tuple[str, str], names: tuple[str, str], winner: str, where: str
) -> tuple[int, int, int]:
  """(wins of the left, wins of the right, ties) of a vote, of which one is 1.

  Args:
    pair: the columns of both sides, which are also keywords for a winner, as ties are.
    names: of both sides.
    winner: a name or a keyword.
    where: the place, for messages.
  """
  for name in names:
    if name in pair or _tie_word(name) in TIES:
      raise UserError(f"{where}: the name '{name}' is also a keyword for a winner; rename it.")
  if winner in (names[0], pair[0]):
    return 1, 0, 0
  if winner in (names[1], pair[1]):
    return 0, 1, 0
  if _tie_word(winner) in TIES:
    return 0, 0, 1
  raise UserError(
    f"{where}: the winner '{winner}' must be {', '.join(pair)}, tie, '{names[0]}' or '{names[1]}'."
  )


def _tie_word(text) -> str:
  return ''.join(filter(str.isalpha, text.lower()))


def parse_count(cell: str, where: str) -> float:
  """The count in a cell."""
  count = parse_number(cell, where)
  if not 0 <= count < np.inf:
    raise UserError(f"{where}: '{cell}' is no count; write a finite number of at least 0.")
  return count
