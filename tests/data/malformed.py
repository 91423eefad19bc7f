"""Malformed rows and files, most of them among rows that are good; more in `malformed_layouts`.

`inputs()` gives (name, schema, write): `write(folder)` makes the input and gives its path. Whatever
is read of it must be among `GOOD[schema]`, of which most have the first three.
"""

import gzip
import io
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nlhf_jax.data.row_fields import MAX_TEXT

TALK = [{'role': 'user', 'content': 'Say hi.'}, {'role': 'assistant', 'content': 'Hi!'}]
ROWS = {
  'comparisons': {'prompt': 'Say {}.', 'chosen': 'Yes, {}!', 'rejected': 'No {}.'},
  'graded': {'prompt': 'Say {}.', 'left': 'Yes {}!', 'right': 'No {}.', 'preference': 0.7},
  'demonstrations': {'prompt': 'Say {}.', 'response': 'Yes, {}!'},
  'prompts': {'prompt': 'Say {}.'},
  'unpaired': {'prompt': 'Say {}.', 'completion': 'Yes, {}!', 'label': True},
  'implicit_prompt': {'chosen': 'Say {}. Yes, {}!', 'rejected': 'Say {}. No {}.'},
  'tldr_posts': {'subreddit': 'a', 'title': 'b', 'post': 'Post {}.', 'summary': 'S {}.'},
  'tldr_comparisons': {
    'info': {'subreddit': 'a', 'title': 'b', 'post': 'Post {}.', 'article': None},
    'summaries': [{'text': 'One {}.'}, {'text': 'Two {}.'}],
    'choice': 1,
  },
  'hh': {
    'chosen': '\n\nHuman: Say {}.\n\nAssistant: Yes {}!',
    'rejected': '\n\nHuman: Say {}.\n\nAssistant: No.',
  },
  'ultrafeedback': {
    'chosen': [{'role': 'user', 'content': 'Say {}.'}, {'role': 'assistant', 'content': 'Hi {}!'}],
    'rejected': [{'role': 'user', 'content': 'Say {}.'}, {'role': 'assistant', 'content': 'No.'}],
    'score_chosen': 5.0,
    'score_rejected': 1.0,
  },
  'alpaca_eval': {'instruction': 'Say {}.', 'output_1': 'Hi!', 'output_2': 'N.', 'preference': 1.3},
  'llmbar': {'input': 'Say {}.', 'output_1': 'Yes {}!', 'output_2': 'No.', 'label': 1},
  'pandalm': {
    'instruction': 'Say {}.',
    'input': '',
    'response1': 'Yes {}!',
    'response2': 'No.',
    'annotator1': 1,
    'annotator2': 2,
    'annotator3': 0,
  },
  'autoj': {'prompt': 'Say {}.', 'response 1': 'Yes {}!', 'response 2': 'No.', 'label': 2},
}


def numbered(value, number: int):
  """The row with a number in its texts."""
  if isinstance(value, dict):
    return {key: numbered(item, number) for key, item in value.items()}
  if isinstance(value, list):
    return [numbered(item, number) for item in value]
  return value.replace('{}', f'hi {number}') if isinstance(value, str) else value


GOOD = {schema: [numbered(row, number) for number in range(500)] for schema, row in ROWS.items()}
OURS = GOOD['comparisons'][:3]

# Values that are neither a text nor a list of messages.
JUNK = {
  'null': None,
  'a number': 3,
  'a float': 1.5,
  'true': True,
  'an empty list': [],
  'an object': {'text': 'a'},
  'an empty text': '',
  'spaces': ' \t\n\u2003',
  'a null character': 'a\0b',
  'half of a surrogate pair': 'a\ud800',
  'a gigantic text': 'a' * (MAX_TEXT + 1),
  'a list of nothing': [None],
  'a list of texts': ['a'],
  'lists in lists': [[[[['a']]]]],
  'a message without a role': [{'content': 'a'}],
  'a message without content': [{'role': 'assistant'}],
  'an unknown role': [{'role': 'tool', 'content': 'a'}],
  'a role that is a list': [{'role': ['user'], 'content': 'a'}],
  'content that is null': [{'role': 'user', 'content': None}],
  'content that is a list': [{'role': 'user', 'content': ['a']}],
  'content that is empty': [{'role': 'user', 'content': ''}],
  'system alone': [{'role': 'system', 'content': 'a'}],
}
NUMBERS = {'null': None, 'text': '1', 'true': True, 'a list': [1], 'far off': 10**6, 'a half': 0.51}
LINES = {
  'latin-1': '{"prompt": "caf\u00e9", "chosen": "b", "rejected": "c"}'.encode('latin-1'),
  'utf-16': json.dumps(OURS[0]).encode('utf-16'),
  'half a character': '{"prompt": "\u00e9'.encode()[:-1],
  'a character written too long': b'{"prompt": "\xc0\xaf", "chosen": "b", "rejected": "c"}',
  'random bytes': random.Random(0).randbytes(200).replace(b'\n', b''),
  'prompt twice': b'{"prompt": "a", "prompt": "x", "chosen": "b", "rejected": "c"}',
  'chosen twice': b'{"prompt": "a", "chosen": "b", "chosen": "x", "rejected": "c"}',
  'rejected twice': b'{"prompt": "a", "chosen": "b", "rejected": "c", "rejected": "x"}',
  'another field twice': b'{"prompt": "a", "chosen": "b", "rejected": "c", "x": 1, "x": 2}',
  'a role twice': b'{"prompt": [{"role": "user", "role": "system", "content": "a"}], '
  b'"chosen": "b", "rejected": "c"}',
  'a raw control character': b'{"prompt": "a\x01", "chosen": "b", "rejected": "c"}',
  'a long number': b'{"prompt": ' + b'9' * 5000 + b'}',
  'deep brackets': b'[' * 100_000,
  'deep objects': b'{"prompt":' * 100_000,
  'deep and closed': b'[' * 900 + b']' * 900,
  'an empty object': b'{}',
  'a list': json.dumps(OURS).encode(),
  'null': b'null',
  'text': b'"text"',
  'a number': b'3',
  'NaN': b'NaN',
  'two objects': json.dumps(OURS[0]).encode() * 2,
  'a trailing comma': b'{"prompt": "a", "chosen": "b", "rejected": "c",}',
  'Python': repr(OURS[0]).encode(),
  'a comment': b'// {"prompt": "a", "chosen": "b", "rejected": "c"}',
  'HTML': b'<html><body>404</body></html>',
  'CSV': b'prompt,chosen,rejected',
  'a byte-order mark inside': b'\xef\xbb\xbf' + json.dumps(OURS[0]).encode(),
  'a pointer to large storage': b'version https://git-lfs.github.com/spec/v1',
  'both responses the same': b'{"prompt": "a", "chosen": "b", "rejected": "b"}',
  'other names': b'{"question": "a", "good": "b", "bad": "c"}',
  'names in capitals': b'{"Prompt": "a", "Chosen": "b", "Rejected": "c"}',
  'from an assistant': json.dumps({**OURS[0], 'prompt': TALK}).encode(),
  'another prompt': json.dumps(
    {'prompt': 'x', 'chosen': TALK, 'rejected': [TALK[0], {**TALK[1], 'content': 'n'}]}
  ).encode(),
}

Input = tuple[str, str, Callable[[Path], Path]]


def inputs() -> Iterator[Input]:
  """Yields the inputs of this file."""
  yield from lines()
  yield from fields()
  yield from packed()
  yield from arrays()
  yield from tables()
  yield from places()


def as_lines(rows) -> bytes:
  return b''.join(
    (row if isinstance(row, bytes) else json.dumps(row).encode()) + b'\n' for row in rows
  )


def file(name: str, content: bytes) -> Callable[[Path], Path]:
  def write(folder):
    path = folder / name
    path.write_bytes(content)
    return path

  return write


def between(schema: str, bad) -> Callable[[Path], Path]:
  """JSON lines with a bad line among good ones."""
  first, *rest = GOOD[schema][:3]
  return file('mine.jsonl', as_lines([first, bad, *rest]))


def lines() -> Iterator[Input]:
  for name, line in LINES.items():
    yield name, 'comparisons', between('comparisons', line)
  whole = json.dumps(numbered(ROWS['comparisons'], 9)).encode()
  for end in range(1, len(whole), 7):
    yield f'cut after {end} bytes', 'comparisons', between('comparisons', whole[:end])
  for place in [i for i, byte in enumerate(whole) if byte in b'{}":,']:
    if whole[place : place + 2] != b', ' or whole[place - 1 : place] == b'"':
      cut = whole[:place] + whole[place + 1 :]
      yield f'without byte {place}', 'comparisons', between('comparisons', cut)


def fields() -> Iterator[Input]:
  for field in ROWS['comparisons']:
    for name, value in JUNK.items():
      bad = OURS[0] | {field: value}
      yield f'{name} as {field}', 'comparisons', between('comparisons', bad)
  for name, value in NUMBERS.items():
    bad = GOOD['graded'][0] | {'preference': value}
    if name != 'a half':
      yield f'{name} as preference', 'graded', between('graded', bad)
      yield f'{name} as votes', 'graded', between('graded', bad | {'preference': 1, 'votes': -1})
  for schema, row in ROWS.items():
    for field in row:
      rest = {key: value for key, value in GOOD[schema][0].items() if key != field}
      yield f'{schema} without {field}', schema, between(schema, rest)
      for name in ('a number', 'an object', 'lists in lists'):
        # These fields may be numbers.
        if not (name == 'a number' and isinstance(row[field], float | int)):
          yield f'{schema}, {name} as {field}', schema, between(schema, rest | {field: JUNK[name]})


def packed() -> Iterator[Input]:
  whole = gzip.compress(as_lines(GOOD['comparisons']))
  good = as_lines(OURS)
  for end in (1, 2, 5, 10, 18, 100, len(whole) // 2, len(whole) - 8, len(whole) - 1):
    yield f'gzip cut after {end}', 'comparisons', file('mine.jsonl.gz', whole[:end])
  flipped = bytearray(whole)
  flipped[-6] ^= 1
  yield 'gzip with another sum', 'comparisons', file('mine.jsonl.gz', bytes(flipped))
  flipped = bytearray(whole)
  flipped[len(whole) // 2] ^= 255
  yield 'gzip with another byte', 'comparisons', file('mine.jsonl.gz', bytes(flipped))
  yield 'gzip with something after', 'comparisons', file('mine.jsonl.gz', whole + b'more')
  yield 'not gzip', 'comparisons', file('mine.jsonl.gz', good)
  yield 'gzip in gzip', 'comparisons', file('mine.jsonl.gz', gzip.compress(whole))
  yield 'an empty file', 'comparisons', file('mine.jsonl', b'')
  yield 'an empty gzip', 'comparisons', file('mine.jsonl.gz', gzip.compress(b''))
  for name, start, piece in (
    ('zeros', b'', b'\0'),
    ('a text without end', b'{"prompt": "', b'a'),
    ('empty lines', b'', b'\n'),
    ('brackets', b'', b'['),
  ):
    yield f'bomb of {name}', 'comparisons', file('mine.jsonl.gz', bomb(good + start, piece))
  yield 'bomb of an array', 'comparisons', file('mine.json.gz', bomb(b'[', b'1,'))


def bomb(start: bytes, piece: bytes) -> bytes:
  """20 MiB, compressed to 20 KiB."""
  out = io.BytesIO()
  with gzip.GzipFile(fileobj=out, mode='wb', compresslevel=9, mtime=0) as file:
    file.write(start)
    for _ in range(20):
      file.write(piece * (2**20 // len(piece)))
  return out.getvalue()


def arrays() -> Iterator[Input]:
  whole = json.dumps(OURS).encode()
  for end in (1, 10, len(whole) // 2, len(whole) - 1):
    yield f'array cut after {end}', 'comparisons', file('mine.json', whole[:end])
  for name, content in {
    'array with something after': whole + b'x',
    'array with two commas': whole.replace(b'}, {', b'},, {', 1),
    'array with a comma at its end': whole[:-1] + b',]',
    'array without commas': whole.replace(b'}, {', b'} {'),
    'array in Latin-1': '["caf\u00e9"]'.encode('latin-1'),
    'array of other things': json.dumps([*OURS, None, 3, 'a', [OURS[0]]]).encode(),
    'array with a key twice': whole[:-1] + b', {"prompt": "a", "prompt": "b"}]',
    'array of deep brackets': b'[' * 100_000,
    'array of nothing': b'[]',
    'array that is empty': b' ',
  }.items():
    yield name, 'comparisons', file('mine.json', content)


def table(columns) -> bytes:
  out = io.BytesIO()
  pq.write_table(columns, out, write_page_checksum=True, compression='none')
  return out.getvalue()


def tables() -> Iterator[Input]:
  good = pa.Table.from_pylist(OURS)
  whole = table(pa.Table.from_pylist(GOOD['comparisons']))
  for end in (0, 1, 4, 8, 100, len(whole) // 2, len(whole) - 100, len(whole) - 4, len(whole) - 1):
    yield f'table cut after {end}', 'comparisons', file('mine.parquet', whole[:end])
  for place in (60, 200, len(whole) // 4):
    flipped = bytearray(whole)
    flipped[place] ^= 255
    yield f'table with another byte {place}', 'comparisons', file('mine.parquet', bytes(flipped))
  yield (
    'table of random bytes',
    'comparisons',
    file('mine.parquet', b'PAR1' + random.Random(1).randbytes(500) + b'PAR1'),
  )
  yield 'table without a column', 'comparisons', file('mine.parquet', table(good.drop(['chosen'])))
  yield 'table without rows', 'comparisons', file('mine.parquet', table(good.slice(0, 0)))
  for name, column in {
    'nulls': pa.nulls(3),
    'numbers': pa.array([1, 2, 3]),
    'bytes': pa.array([b'a', b'b', b'c']),
    'lists': pa.array([['a'], ['b'], []]),
    'what is not UTF-8': pa.Array.from_buffers(
      pa.utf8(), 3, pa.array([b'caf\xe9', b'\xff', b'\xc0\xaf']).buffers()
    ),
    'days': pa.array([1, 2, 3], pa.date32()),
  }.items():
    columns = good.set_column(1, 'chosen', column)
    yield f'table with {name}', 'comparisons', file('mine.parquet', table(columns))
  twice = pa.table([*good.columns, good.columns[0]], names=[*good.column_names, 'prompt'])
  yield 'table with a column twice', 'comparisons', file('mine.parquet', table(twice))
  out = io.BytesIO()
  with pa.ipc.new_stream(out, good.schema) as stream:
    stream.write_table(good)
  arrow = out.getvalue()
  for end in (0, 3, 50, len(arrow) // 2, len(arrow) - 60):
    yield f'arrow cut after {end}', 'comparisons', file('mine.arrow', arrow[:end])


def places() -> Iterator[Input]:
  def link(to):
    def write(folder):
      (folder / 'mine.jsonl').symlink_to(to)
      return folder / 'mine.jsonl'

    return write

  yield 'a link to nothing', 'comparisons', link('nothing.jsonl')
  yield 'a link to itself', 'comparisons', link('mine.jsonl')
  yield 'a link to its folder', 'comparisons', link('.')
  yield 'a link to endless zeros', 'comparisons', link('/dev/zero')
  yield 'a link to nothing at all', 'comparisons', link('/dev/null')

  def pipe(folder):
    os.mkfifo(folder / 'mine.jsonl')
    return folder / 'mine.jsonl'

  def folder_of(*names):
    def write(folder):
      for name in names:
        (folder / name).write_bytes(as_lines(OURS))
      return folder

    return write

  yield 'a pipe', 'comparisons', pipe
  yield 'an empty folder', 'comparisons', folder_of()
  yield 'a folder of something else', 'comparisons', folder_of('a.csv', 'b.txt')
  yield 'a folder of several splits', 'comparisons', folder_of('test.jsonl', 'train.jsonl')
  yield 'a file of another kind', 'comparisons', file('mine.csv', b'prompt,chosen,rejected')
  yield 'a name that is no path', 'comparisons', lambda folder: folder / 'a\0b'
  yield 'a very long name', 'comparisons', lambda folder: folder / ('a' * 300 + '.jsonl')
