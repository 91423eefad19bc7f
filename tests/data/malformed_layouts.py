"""Malformed conversations, files of other formats, and folders whose manifests are not right."""

import io
import json
from collections.abc import Iterator

import pyarrow as pa

from tests.data.malformed import GOOD, OURS, TALK, Input, between, file


def layout_inputs() -> Iterator[Input]:
  """Yields the inputs of this file, as `malformed.inputs`."""
  yield from conversations()
  yield from other_formats()
  yield from folders()


# Contents of a message that are no text.
CONTENTS = {
  'no parts': [],
  'null': [None],
  'numbers': [1, 2],
  'lists': [['a']],
  'a part without type': [{'text': 'a'}],
  'a part without text': [{'type': 'text'}],
  'a part of null': [{'type': 'text', 'text': None}],
  'a part that is nested': [{'type': 'text', 'text': {'value': 'a'}}],
  'an image': [{'type': 'image_url', 'image_url': {'url': 'a'}}],
  'a text and an image': [{'type': 'text', 'text': 'a'}, {'type': 'image'}],
  'an empty part': [{'type': 'text', 'text': ' '}],
  'a tool': [{'type': 'tool_use', 'text': 'a'}],
  'half of a surrogate pair': [{'type': 'text', 'text': 'a\udc00'}],
}


def conversations() -> Iterator[Input]:
  """Messages, labels and common starts that are not what they should be."""
  user, assistant = TALK
  for name, content in CONTENTS.items():
    for field, message in (('prompt', user), ('chosen', assistant)):
      bad = OURS[0] | {field: [{**message, 'content': content}]}
      yield f'content of {field}: {name}', 'comparisons', between('comparisons', bad)
  system = {'role': 'system', 'content': 'Be brief.'}
  for name, messages in {
    'system at the end': [user, assistant, system],
    'system in between': [user, system, assistant],
    'two systems': [system, system, user, assistant],
    'two users': [user, user, assistant],
    'two assistants': [user, assistant, assistant],
    'an assistant first': [assistant, user, assistant],
    'an assistant alone': [assistant],
    'nobody': [],
    'a user last': [user, assistant, user],
    'other names': [{'from': 'human', 'value': 'a'}, {'from': 'gpt', 'value': 'b'}],
  }.items():
    bad = {'messages': messages}
    yield f'messages with {name}', 'demonstrations', between('demonstrations', bad)
    bad = {'prompt': 'a', 'completion': messages, 'label': True}
    if name != 'an assistant alone':
      yield f'completion with {name}', 'unpaired', between('unpaired', bad)
  good = GOOD['unpaired'][0]
  for label in (None, 'true', '1', 2, -1, 0.5, 1.0, float('nan'), [True], {'label': True}, ''):
    yield f'label {label!r}', 'unpaired', between('unpaired', good | {'label': label})
  for chosen, rejected in (('a', 'b'), ('a b', 'a b'), ('a b', 'a '), (' a', 'b'), ('ab', 'ac')):
    bad = {'chosen': chosen, 'rejected': rejected}
    yield f'no start in {chosen} and {rejected}', 'implicit_prompt', between('implicit_prompt', bad)


def other_formats() -> Iterator[Input]:
  """Files of other formats, and objects and Arrow files that are cut short."""
  for name, start in {
    'a web page': b'<!doctype html><html></html>',
    'XML': b'<?xml version="1.0"?>',
    'a zip archive': b'PK\x03\x04',
    'bzip2': b'BZh91AY',
    'xz': b'\xfd7zXZ\0',
    'zstd': b'\x28\xb5\x2f\xfd',
    'a pickle': b'\x80\x04\x95',
    'an SQLite database': b'SQLite format 3\0',
    'Feather of version 1': b'FEA1',
    'ORC': b'ORC',
    'Avro': b'Obj\x01',
    'UTF-16': json.dumps(OURS).encode('utf-16'),
    'UTF-32': json.dumps(OURS).encode('utf-32'),
    'a pointer of Git LFS': b'version https://git-lfs.github.com/spec/v1',
    'CSV': b'prompt,chosen,rejected\na,b,c',
    'YAML': b'- prompt: a\n  chosen: b\n  rejected: c\n',
    'Python': repr(OURS).encode(),
  }.items():
    for suffix in ('.jsonl', '.json', '.parquet', '.arrow'):
      content = start + bytes(40) if len(start) < 10 else start
      yield f'{name} as {suffix}', 'comparisons', file(f'mine{suffix}', content)
  out = io.BytesIO()
  good = pa.Table.from_pylist(OURS)
  with pa.ipc.new_file(out, good.schema) as written:
    written.write_table(good)
  arrow = out.getvalue()
  for end in (6, 8, 60, len(arrow) // 2, len(arrow) - 6, len(arrow) - 1):
    yield f'arrow file cut after {end}', 'comparisons', file('mine.arrow', arrow[:end])
  whole = json.dumps({'data': OURS}, indent=1).encode()
  for end in (1, 3, 20, len(whole) // 2, len(whole) - 4, len(whole) - 1):
    yield f'object cut after {end}', 'comparisons', file('mine.json', whole[:end])
  for name, value in {
    'several lists': {'train': OURS, 'test': OURS},
    'columns': {field: [row[field] for row in OURS] for field in OURS[0]},
    'rows by number': {str(i): row for i, row in enumerate(OURS)},
    'rows in rows': {'rows': [{'row_idx': i, 'row': row} for i, row in enumerate(OURS)]},
    'a list in a list': {'data': {'data': OURS}},
    'an error': {'error': 'not found'},
  }.items():
    yield f'object of {name}', 'comparisons', file('mine.json', json.dumps(value).encode())


def folders() -> Iterator[Input]:
  """Folders as `datasets` saves them, whose manifests are not right."""

  def saved(state, *names):
    def write(folder):
      (folder / 'state.json').write_text(state if isinstance(state, str) else json.dumps(state))
      for name in names:
        with pa.OSFile(str(folder / name), 'wb') as out:
          good = pa.Table.from_pylist(OURS)
          with pa.ipc.new_stream(out, good.schema) as stream:
            stream.write_table(good)
      return folder

    return write

  one = [{'filename': 'a.arrow'}]
  for name, state in {
    'cut': '{"_data_files": [',
    'a list': '[]',
    'deep': '[' * 100_000,
    'text for files': {'_data_files': 'a.arrow'},
    'texts for files': {'_data_files': ['a.arrow']},
    'no name': {'_data_files': [{}]},
    'null': {'_data_files': [{'filename': None}]},
    'nothing': {'_data_files': []},
    'a missing file': {'_data_files': [*one, {'filename': 'b.arrow'}]},
    'a file above': {'_data_files': [{'filename': '../a.arrow'}]},
    'a file elsewhere': {'_data_files': [{'filename': '/etc/passwd'}]},
    'its own folder': {'_data_files': [{'filename': '.'}]},
    'a terminal escape': {'_data_files': [{'filename': '\x1b[2J'}]},
    'a null character': {'_data_files': [{'filename': 'a\0'}]},
    'half of a surrogate pair': {'_data_files': [{'filename': 'a\ud800'}]},
    'an old mapping of indices': {'_data_files': one, '_indices_data_files': one},
    'a mapping of indices': {'_data_files': one, '_indices_files': one},
    'a part of a file': {'_data_files': [{'filename': 'a.arrow', 'skip': 1, 'length': 1}]},
    'a shard alone': {'_data_files': [{'filename': 'data-00000-of-00002.arrow'}]},
  }.items():
    files = ('a.arrow', 'data-00000-of-00002.arrow')
    yield f'a manifest with {name}', 'comparisons', saved(state, *files)
  caches = ('cache-1f0c.arrow', 'cache-77ab.arrow')
  yield 'a folder of caches', 'comparisons', saved('{}', *caches)
  old = (
    'train-00000-of-00001-1f0c9a7be2d45381.arrow',
    'train-00000-of-00001-77ab09c3d1e2f456.arrow',
  )
  yield 'a folder of two versions', 'comparisons', saved('{}', *old)
  yield 'a folder without a shard', 'comparisons', saved('{}', 'train-00001-of-00002.arrow')
