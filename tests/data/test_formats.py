"""The content of a file decides how it is read, and only the columns of a schema are converted."""

import gzip
import json

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from nlhf_jax.data import examples
from nlhf_jax.data.conversations import Message
from nlhf_jax.data.schemas import Example
from nlhf_jax.errors import UserError

ROWS = [{'prompt': f'question {i}', 'chosen': f'yes {i}', 'rejected': f'no {i}'} for i in range(90)]
EXAMPLES = [Example(*row.values()) for row in ROWS]
TEA, REASON = 'Say something about tea, number 0.', 'Tea is useful, and here is reason 0.'
BRIEFLY = (Message('system', 'Be brief.'), Message('user', TEA))
LINES = ''.join(json.dumps(row) + '\n' for row in ROWS)
PRETTY = '\n'.join(json.dumps(row, indent=2) for row in ROWS)


def read(path, schema='comparisons', split='', skip_bad=False):
  return list(examples.read_examples(str(path), schema, split, skip_bad))


@pytest.mark.parametrize(
  ('name', 'split', 'count'),
  [
    ('hashed', 'train', 80),
    ('hashed', 'test', 20),
    ('hashed_one', 'train', 40),
    ('hashed_one', 'test', 20),
    ('lines.json', '', 120),
    ('under_key.json', '', 120),
    ('feather.arrow', '', 120),
    ('stamped.parquet', '', 120),
    ('far_future.parquet', '', 120),
    ('odd_zone.parquet', '', 120),
  ],
)
def test_files_of_the_field_are_read(shared, name, split, count):
  expected = read(shared / 'field' / 'data' / 'base.jsonl')
  found = read(shared / 'field' / 'data' / name, split=split)
  start = 80 if name == 'hashed' and split == 'test' else 0
  assert len(found) == count
  if not (name == 'hashed_one' and split == 'test'):
    assert found == expected[start : start + count]


@pytest.mark.parametrize(
  ('name', 'schema', 'first'),
  [
    ('parts.jsonl', 'comparisons', Example(TEA, REASON, 'no idea 0')),
    ('both.jsonl', 'comparisons', Example(BRIEFLY, REASON, 'no idea 0')),
    ('implicit_text.jsonl', 'implicit_prompt', Example(TEA, f' {REASON}', ' no idea 0')),
    ('messages.jsonl', 'demonstrations', Example(TEA, demonstration=REASON)),
    ('thumbs.jsonl', 'unpaired', Example(TEA, REASON)),
    ('two_turns_apart.jsonl', 'comparisons', "line 1: field 'rejected' has other messages"),
    ('implicit_text.jsonl', 'comparisons', r'line 1: .* set config.data.schema=implicit_prompt'),
  ],
)
def test_layouts_of_the_field_are_read_or_refused(shared, name, schema, first):
  path = shared / 'field' / 'data' / name
  if isinstance(first, str):
    with pytest.raises(UserError, match=first):
      read(path, schema)
  else:
    found = read(path, schema)
    assert found[0] == first
    assert len(found) == 20


def as_table(write):
  def content():
    out = pa.BufferOutputStream()
    write(pa.Table.from_pylist(ROWS), out)
    return out.getvalue().to_pybytes()

  return content


def write_stream(table, out):
  with pa.ipc.new_stream(out, table.schema) as stream:
    stream.write_table(table, max_chunksize=40)


def write_file(table, out):
  with pa.ipc.new_file(out, table.schema) as file:
    file.write_table(table, max_chunksize=40)


CONTENTS = {
  'lines': LINES.encode,
  'lines with a mark': lambda: b'\xef\xbb\xbf' + LINES.encode(),
  'lines after blank ones': lambda: b'\n \r\n' + LINES.replace('\n', '\r\n').encode(),
  'array': json.dumps(ROWS).encode,
  'array over lines': json.dumps(ROWS, indent=1).encode,
  'array after blanks': lambda: b' \n\t' + json.dumps(ROWS).encode(),
  'objects over lines': PRETTY.encode,
  'under a key': json.dumps({'version': '1.0', 'data': ROWS}).encode,
  'under a key over lines': json.dumps({'examples': ROWS, 'notes': ['a']}, indent=2).encode,
  'under a key with brackets': json.dumps({'a"]': '[{', 'rows': ROWS, 'z': {'x': []}}).encode,
  'parquet': as_table(pq.write_table),
  'arrow stream': as_table(write_stream),
  'arrow file': as_table(write_file),
  'feather': as_table(pyarrow.feather.write_feather),
}


@pytest.mark.parametrize('suffix', ['.jsonl', '.json', '.parquet', '.arrow'])
@pytest.mark.parametrize('content', CONTENTS)
def test_the_name_of_a_file_does_not_matter(content, suffix, tmp_path):
  path = tmp_path / f'mine{suffix}'
  path.write_bytes(CONTENTS[content]())
  assert read(path) == EXAMPLES


def test_one_row_is_a_row_and_not_a_list(tmp_path):
  talk = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
  path = tmp_path / 'mine.json'
  path.write_text(json.dumps({'messages': talk}))
  assert read(path, 'demonstrations') == [Example('a', demonstration='b')]
  path.write_text(json.dumps({'prompt': 'a', 'extra': [{'prompt': 'c'}]}, indent=1))
  assert read(path, 'prompts') == [Example('a')]


def test_a_bad_row_is_named_in_every_layout(tmp_path):
  path = tmp_path / 'mine.json'
  bad = [ROWS[0], {**ROWS[1], 'chosen': ''}, ROWS[2]]
  lines = ''.join(json.dumps(row) + '\n' for row in bad)
  for text, noun in (
    (lines, 'line'),
    (json.dumps(bad), 'row'),
    (json.dumps({'data': bad}), 'row'),
    ('\n'.join(json.dumps(row, indent=1) for row in bad), 'row'),
  ):
    path.write_text(text)
    with pytest.raises(UserError, match=f"^{path}, {noun} 2: field 'chosen' is empty; correct"):
      read(path)
    assert read(path, skip_bad=True) == [EXAMPLES[0], EXAMPLES[2]]


@pytest.mark.parametrize(
  ('content', 'what'),
  [
    (json.dumps({'train': ROWS[:2], 'test': ROWS[2:]}), 'several lists of rows: .train., .test.'),
    (json.dumps({'prompt': ['a'], 'chosen': ['b'], 'rejected': ['c']}), 'of columns, not of rows'),
    (json.dumps({field: {'0': 'a', '1': 'b'} for field in ROWS[0]}), 'of columns, not of rows'),
    (json.dumps({'prompt': [[{'role': 'user', 'content': 'a'}]]}), 'of columns, not of rows'),
    (json.dumps({'0': ROWS[0], '1': ROWS[1]}), "row 1: field 'prompt' is missing; it has"),
    (json.dumps({'data': ROWS}, indent=1)[:-9], r'is damaged \(line \d+, column \d+: '),
    ('<!doctype html>', 'is a web page'),
    ('version https://git-lfs.github.com/spec/v1\noid', 'is a pointer of Git LFS'),
    (LINES.encode('utf-16'), 'is UTF-16; convert it'),
    (b'PK\x03\x04' + bytes(50), 'is a zip archive; unpack it'),
    (b'\x28\xb5\x2f\xfd' + bytes(50), 'is compressed by zstd; unpack it'),
    (b'\x80\x04\x95' + bytes(50), 'is a pickle, which could run code'),
    (b'SQLite format 3\0' + bytes(50), 'is an SQLite database'),
    (gzip.compress(CONTENTS['parquet']()), 'is a table compressed by gzip; unpack it'),
  ],
)
@pytest.mark.parametrize('suffix', ['.json', '.parquet'])
def test_what_cannot_be_read_is_named(content, what, suffix, tmp_path):
  path = tmp_path / f'mine{suffix}'
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(UserError, match=what) as refused:
    read(path)
  assert len(str(refused.value).splitlines()) == 1


ODD_COLUMNS = {
  'nanoseconds': pa.array([1] * 90, pa.timestamp('ns')),
  'far ahead': pa.array([2**62] * 90, pa.timestamp('ms')),
  'an unknown zone': pa.array([1] * 90, pa.timestamp('s', 'Mars/Olympus')),
  'long durations': pa.array([2**62] * 90, pa.duration('s')),
  'not UTF-8': pa.Array.from_buffers(pa.utf8(), 90, pa.array([b'\xff'] * 90).buffers()),
  'nested': pa.array([[{'at': 2**62}]] * 90, pa.list_(pa.struct([('at', pa.timestamp('ms'))]))),
}


@pytest.mark.parametrize('write', [pq.write_table, write_stream, write_file])
@pytest.mark.parametrize('column', ODD_COLUMNS)
def test_other_columns_are_not_converted(column, write, tmp_path):
  table = pa.Table.from_pylist(ROWS).append_column('odd', ODD_COLUMNS[column])
  table = table.append_column('odd', ODD_COLUMNS[column])  # even twice
  with pa.OSFile(str(tmp_path / 'mine.parquet'), 'wb') as out:
    write(table, out)
  assert read(tmp_path / 'mine.parquet') == EXAMPLES


@pytest.mark.parametrize('column', ['nanoseconds', 'far ahead', 'an unknown zone', 'not UTF-8'])
def test_a_wanted_column_of_another_type_is_refused(column, tmp_path):
  table = pa.Table.from_pylist(ROWS).set_column(1, 'chosen', ODD_COLUMNS[column])
  pq.write_table(table, tmp_path / 'mine.parquet')
  with pytest.raises(UserError, match=r'mine.parquet, row 1: (field|a value|not UTF-8)'):
    read(tmp_path / 'mine.parquet')


def test_text_that_is_no_json_is_named(tmp_path):
  path = tmp_path / 'mine.json'
  path.write_text('prompt,chosen,rejected\na,b,c\n')
  with pytest.raises(UserError, match=r"mine.json is not JSON: it begins with 'prompt,chosen"):
    read(path)


@pytest.mark.parametrize('kind', [pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_texts_of_every_type_are_read(kind, tmp_path):
  table = pa.Table.from_pylist(ROWS)
  columns = [column.cast(pa.string()).combine_chunks().cast(kind) for column in table.columns]
  pq.write_table(pa.table(columns, names=table.column_names), tmp_path / 'mine.parquet')
  assert read(tmp_path / 'mine.parquet') == EXAMPLES


def test_a_table_without_the_fields_says_what_it_has(tmp_path):
  pq.write_table(pa.table({'question': ['a'], 'answer': ['b']}), tmp_path / 'mine.parquet')
  with pytest.raises(UserError, match=r"row 1: field 'prompt' is missing; it has .'answer', 'ques"):
    read(tmp_path / 'mine.parquet', 'prompts')


def test_a_table_that_expands_too_much_is_refused(tmp_path):
  table = pa.table({'prompt': ['a' * 2**24], 'other': ['b' * 2**24]})
  path = tmp_path / 'mine.parquet'
  pq.write_table(table, path, compression={'prompt': 'none', 'other': 'zstd'}, use_dictionary=False)
  with pytest.raises(UserError, match='longer than 1,048,576 characters'):
    read(path, 'prompts')  # what is not read may expand
  pq.write_table(table, path, compression='zstd', use_dictionary=False)
  with pytest.raises(UserError, match='expands to more than 100 times its size'):
    read(path, 'prompts')
