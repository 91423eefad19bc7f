"""Malformed matrices and lists of votes: all must be refused.

`inputs()` gives (name, ending, content). `GOOD` maps an ending to files that are read.
"""

import json
import random
from collections.abc import Iterator

MATRIX = [[0.5, 0.25, 0.75], [0.75, 0.5, 0.125], [0.25, 0.875, 0.5]]
NAMES = ('rock', 'paper', 'scissors')
VOTES = [
  {'left': 'rock', 'right': 'paper', 'winner': 'right'},
  {'left': 'paper', 'right': 'scissors', 'winner': 'tie'},
  {'left': 'scissors', 'right': 'rock', 'winner': 'rock'},
]
BATTLES = [
  {'model_a': 'rock', 'model_b': 'paper', 'winner': 'model_b'},
  {'model_a': 'paper', 'model_b': 'scissors', 'winner': 'tie (bothbad)'},
  {'model_a': 'scissors', 'model_b': 'rock', 'winner': 'rock'},
]
COUNTS = [
  {'left': 'rock', 'right': 'paper', 'left_wins': 0, 'right_wins': 1, 'ties': 0},
  {'left': 'paper', 'right': 'scissors', 'left_wins': 0, 'right_wins': 0, 'ties': 1},
  {'left': 'scissors', 'right': 'rock', 'left_wins': 0, 'right_wins': 1, 'ties': 0},
]
LISTS = {'votes': VOTES, 'battles': BATTLES, 'counts': COUNTS}
CELLS = ('x', '0,5', '0.5.', '--1', '1e999', 'inf', '-inf', '2', '-0.25', '50%', '0.26', '½', '0x1')
WRONG_NAMES = ('', 'nul\0', 'bell\x07', 'colour\x1b[31m', '\u202eback')
WRONG_JSON = (None, True, [], ['rock'], {}, {'name': 'rock'})
WINNERS = ('', 'lizard', 'both', '0', 'model_c', 'left right', 'not a tie')
NUMBERS = ('', 'x', '-1', 'inf', 'nan', '1e999')


def to_csv(rows: list[dict]) -> str:
  """The rows with a header."""
  lines = [rows[0].keys(), *(row.values() for row in rows)]
  return '\n'.join(','.join(map(str, line)) for line in lines) + '\n'


def to_lines(rows: list[dict]) -> str:
  """An object per line."""
  return '\n'.join(map(json.dumps, rows))


def matrix_csv(cells, names=NAMES) -> str:
  """A matrix with names in its first row and column."""
  rows = [','.join(map(str, (name, *row))) for name, row in zip(names, cells, strict=True)]
  return '\n'.join([','.join(('', *names)), *rows]) + '\n'


GOOD = {
  name: (ending, make(rows))
  for kind, rows in LISTS.items()
  for name, ending, make in (
    (f'{kind}, csv', 'csv', to_csv),
    (f'{kind}, lines', 'jsonl', to_lines),
    (f'{kind}, lines in json', 'json', to_lines),
    (f'{kind}, list', 'json', json.dumps),
  )
}


def inputs() -> Iterator[tuple[str, str, bytes]]:
  """The name, the ending and the content."""
  for name, ending, text in (*_matrices(), *_lists()):
    yield name, ending, text.encode()
  noise = random.Random(0).randbytes(300)
  for ending in ('csv', 'json', 'jsonl', 'npy'):
    yield f'{ending}, noise', ending, b'\xff\xfe' + noise
    yield f'{ending}, nothing', ending, b''
    yield f'{ending}, blanks', ending, b' \n \n'
    yield f'{ending}, UTF-16', ending, matrix_csv(MATRIX).encode('utf-16')
    yield f'{ending}, one cell', ending, b'0.5'
  for text in ('null', '{}', '[]', '[[]]', '"a"', '[1, 2]', '{"wins": 3}', '[' * 100_000, '[null]'):
    yield f'json, {text[:20]}', 'json', text.encode()


def _matrices() -> Iterator[tuple[str, str, str]]:
  for cell in CELLS:
    rows = [[*MATRIX[0][:1], cell, *MATRIX[0][2:]], *MATRIX[1:]]
    if ',' not in cell:
      yield f'matrix, a cell is {cell}', 'csv', matrix_csv(rows)
    yield f'json matrix, a cell is {cell}', 'json', json.dumps(rows)
  for value in (True, [], {}, 1e400, -0.5, 1.5):
    rows = [[0.5, value, 0.75], *MATRIX[1:]]
    yield f'json matrix, a value is {value}', 'json', json.dumps(rows)
  for name in WRONG_NAMES:
    yield f'matrix, a name is {name!r}', 'csv', matrix_csv(MATRIX, (name, *NAMES[1:]))
    named = {'probabilities': MATRIX, 'names': [name, *NAMES[1:]]}
    yield f'json matrix, a name is {name!r}', 'json', json.dumps(named)
  for names in (['rock', 'rock', 'paper'], ['rock'], 'rps', [1, 2, 3], ['rock', None, 'paper']):
    named = {'probabilities': MATRIX, 'names': names}
    yield f'json matrix, names are {names}', 'json', json.dumps(named)
  yield 'matrix, a name twice', 'csv', matrix_csv(MATRIX, ('rock', 'rock', 'paper'))
  yield 'matrix, a row less', 'csv', '\n'.join(matrix_csv(MATRIX).split('\n')[:-2])
  yield 'matrix, a cell more', 'csv', matrix_csv(MATRIX).replace('0.125', '0.125,0')
  yield 'matrix, a cell less', 'csv', matrix_csv(MATRIX).replace(',0.125', '')
  yield 'matrix, semicolons', 'csv', matrix_csv(MATRIX).replace(',', ';')
  yield 'matrix, an open quote', 'csv', matrix_csv(MATRIX).replace('rock', '"rock')
  yield (
    'matrix, rows in another order',
    'csv',
    (matrix_csv(MATRIX).replace('\nrock', '\nx').replace('\npaper', '\nrock')),
  )
  yield 'matrix, two kinds', 'json', json.dumps({'probabilities': MATRIX, 'wins': MATRIX})
  yield (
    'matrix, ties of probabilities',
    'json',
    json.dumps({'probabilities': MATRIX, 'ties': MATRIX}),
  )


def _lists() -> Iterator[tuple[str, str, str]]:
  for kind, rows in LISTS.items():
    first, second, third = rows
    side, other, *values = first
    for name in WRONG_NAMES:
      changed = [first, second | {side: name}, third]
      if name:  # CSV strips and splits at some of them
        yield f'{kind}, a name is {name!r}', 'csv', to_csv(changed)
      yield f'{kind}, a name in lines is {name!r}', 'jsonl', to_lines(changed)
    for name in WRONG_JSON:
      yield f'{kind}, a name is {name}', 'json', json.dumps([first, second | {side: name}, third])
    changed = [first, second | {side: second[other]}, third]
    yield f'{kind}, against itself', 'csv', to_csv(changed)
    for field in values:
      wrong = WINNERS if field == 'winner' else NUMBERS
      for value in wrong:
        changed = [first, second | {field: value}, third]
        yield f'{kind}, {field} is {value!r}', 'csv', to_csv(changed)
        yield f'{kind}, {field} in lines is {value!r}', 'jsonl', to_lines(changed)
    for field in first:
      without = {name: value for name, value in second.items() if name != field}
      yield f'{kind}, a row without {field}', 'jsonl', to_lines([first, without, third])
    yield f'{kind}, a row is a list', 'json', json.dumps([first, list(second.values()), third])
    yield f'{kind}, only a header', 'csv', to_csv(rows).split('\n')[0]
    yield f'{kind}, a cell more', 'csv', to_csv(rows) + 'a,b,c,d,e,f,g\n'
    yield f'{kind}, no winner', 'csv', to_csv([{side: 'a', other: 'b'}])
    yield f'{kind}, half a line', 'jsonl', to_lines(rows)[:-9]
  yield 'votes, a keyword as a name', 'csv', 'left,right,winner\ntie,rock,tie\n'
  yield 'battles, a keyword as a name', 'csv', 'model_a,model_b,winner\nmodel_b,rock,model_b\n'
  yield 'votes, both kinds of sides', 'csv', 'left,right,model_a,model_b,winner\na,b,c,d,left\n'
  yield 'votes, a column twice', 'csv', 'left,right,winner,winner\na,b,left,right\n'
