"""Malformed files of responses and annotations, each with what may be read of it.

`inputs()` gives (name, kind, content, good): `good` is whether the file says the same as the rows
`ROWS[kind]`, in another form. All other files must be refused.
"""

import gzip
import json
import random
from collections.abc import Iterator

ROWS = {
  'responses': [{'prompt': f'Say {n}.', 'response': f'Yes, {n}!'} for n in range(3)],
  'outputs': [
    {'instruction': f'Say {n}.', 'output': f'Yes, {n}!', 'generator': 'mine'} for n in range(3)
  ],
  'annotations': [
    {
      'instruction': f'Say {n}.',
      'output_1': f'No, {n}.',
      'generator_1': 'reference',
      'output_2': f'Yes, {n}!',
      'generator_2': 'mine',
      'preference': 1.25,
    }
    for n in range(3)
  ],
  'samples': [{'prompt': f'Say {n}.', 'responses': {'mine': f'Yes, {n}!'}} for n in range(3)],
}
REFERENCES = [
  {'instruction': f'Say {n}.', 'output': f'No, {n}.', 'generator': 'reference'} for n in range(3)
]
GOOD = {f'Say {n}.': f'Yes, {n}!' for n in range(3)}
WRONG = {
  'null': None,
  'a number': 7,
  'a fraction': 1.75,
  'a boolean': True,
  'an empty list': [],
  'a list': ['Yes, 1!'],
  'an object': {'text': 'Yes, 1!'},
  'two messages': [{'role': 'user', 'content': 'a'}, {'role': 'user', 'content': 'b'}],
  'a message of a tool': [{'role': 'tool', 'content': 'Yes, 1!'}],
  'a message without content': [{'role': 'assistant'}],
}
PREFERENCES = (0.5, 2.5, -1, 99, 1e400, -1e400, '1', '', True, [], {}, [1.5])
REQUIRED = {
  'responses': ('prompt', 'response'),
  'outputs': ('instruction', 'output'),
  'annotations': ('instruction', 'output_1', 'output_2', 'preference'),
  'samples': ('prompt', 'responses'),
}


def inputs() -> Iterator[tuple[str, str, bytes, bool]]:
  """The name, the kind, the content, and whether it says what `ROWS` say."""
  for kind, rows in ROWS.items():
    for name, changed in _changed_rows(kind, rows):
      yield f'{kind}, {name}', kind, json.dumps(changed).encode(), False
    for name, content, good in _changed_bytes(rows):
      yield f'{kind}, {name}', kind, content, good


def _changed_rows(kind, rows) -> Iterator[tuple[str, list]]:
  first, second, third = rows
  for field in REQUIRED[kind]:
    for number, row in enumerate(rows):
      without = {name: value for name, value in row.items() if name != field}
      yield f'no {field} in row {number + 1}', [*rows[:number], without, *rows[number + 1 :]]
    for name, value in WRONG.items():
      # A preference may be null, or a number from 1 to 2; the policies' responses are an object.
      known = field == 'preference' and name in ('null', 'a fraction')
      if not known:
        yield f'{field} is {name}', [first, second | {field: value}, third]
  if kind == 'annotations':
    for value in PREFERENCES:
      yield f'preference {value!r}', [first, second | {'preference': value}, third]
    yield 'an unknown instruction', [first, second | {'instruction': 'Sing.'}, third]
    yield 'another baseline', [first, second | {'output_1': 'Never.'}, third]
    yield 'two policies', [first, second | {'generator_2': 'other'}, third]
    yield 'two baselines', [first, second | {'generator_1': 'other'}, third]
  if kind == 'outputs':
    yield 'two policies', [first, second | {'generator': 'other'}, third]
    yield 'a prompt twice', [first, second | {'prompt': 'Say 1.'}, third][::-1][1:]
  if kind == 'samples':
    yield 'no policy', [row | {'responses': {}} for row in rows]
    yield 'another policy', [first, second | {'responses': {'other': 'Yes, 1!'}}, third]
    yield 'one more policy', [first, second | {'responses': {'mine': 'Yes, 1!', 'o': 'No.'}}, third]
    yield 'a response is null', [first, second | {'responses': {'mine': None}}, third]
  yield 'a row twice', [*rows, second]
  for name, row in {'null': None, 'a list': [], 'a number': 5, 'text': 'row', 'empty': {}}.items():
    yield f'a row is {name}', [first, row, third]
  yield 'lists in a list', [rows]


def _changed_bytes(rows) -> Iterator[tuple[str, bytes, bool]]:
  text = json.dumps(rows).encode()
  lines = b'\n'.join(json.dumps(row).encode() for row in rows)
  noise = random.Random(0).randbytes(300)
  yield 'a byte-order mark', b'\xef\xbb\xbf' + text, True
  yield 'Windows lines', lines.replace(b'\n', b'\r\n\r\n'), True
  yield 'gzip', gzip.compress(lines), True
  yield 'two gzip members', gzip.compress(lines[:50]) + gzip.compress(lines[50:]), True
  yield 'rows under data', b'{"data": ' + text + b', "version": 1}', True
  for name, content in {
    'nothing': b'',
    'blanks': b' \n\t\n',
    'an empty list': b'[]',
    'an empty object': b'{}',
    'null': b'null',
    'a number': b'3',
    'half of it': text[: len(text) // 2],
    'half of the lines': lines[: len(lines) // 2],
    'more after the list': text + b' {"a": 1}',
    'two lists': text + text,
    'one comma too many': text[:-1] + b',]',
    'a key twice': text.replace(b'{', b'{"prompt": "a", "prompt": "b", ', 1),
    'a key twice in a line': lines + b'\n{"a": 1, "a": 2}',
    'single quotes': text.replace(b'"', b"'"),
    'Latin-1': lines.replace(b'Yes', b'\xdc'),
    'UTF-16': text.decode().encode('utf-16'),
    'a NUL': lines.replace(b'Yes', b'Y\0s'),
    'a gzip file cut short': gzip.compress(lines)[:-9],
    'a damaged gzip file': gzip.compress(lines)[:40] + noise,
    'more after the gzip data': gzip.compress(lines) + noise,
    'noise': noise,
    'a ZIP archive': b'PK\x03\x04' + noise,
    'a Parquet file': b'PAR1' + noise + b'PAR1',
    'brackets': b'[' * 100_000,
    'braces': b'{"a":' * 100_000,
    'deep values': lines + b'\n{"a": ' + b'[' * 100_000 + b']' * 100_000 + b'}',
    'endless digits': lines + b'\n{"a": ' + b'9' * 10_000 + b'}',
  }.items():
    yield name, content, False
