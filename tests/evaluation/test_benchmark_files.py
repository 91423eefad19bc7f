"""JSON files of published benchmarks: both layouts, gzipped or not, and bad files."""

import gzip
import json
import math

import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.storage import json_files

ROWS = [{'id': 1, 'text': 'café\u2028 "x"'}, {'id': 2, 'text': '\U0001f389\n'}]


@pytest.mark.parametrize('write', [json_files.write_list, json_files.write_lines])
@pytest.mark.parametrize('name', ['rows.json', 'rows.jsonl.gz', 'new/rows.json.gz'])
def test_rows_round_trip(tmp_path, write, name):
  path = tmp_path / name
  write(path, ROWS)
  assert json_files.read(path) == ROWS
  assert (path.read_bytes()[:2] == b'\x1f\x8b') == name.endswith('.gz')


def test_nan_and_lone_surrogates_are_replaced(tmp_path):
  json_files.write_lines(tmp_path / 'rows.jsonl', [{'score': math.nan, 'text': '\ud83c'}])
  assert json_files.read(tmp_path / 'rows.jsonl') == [{'score': None, 'text': '\ufffd'}]


def test_byte_order_mark_and_blank_lines_are_accepted(tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_bytes(b'\xef\xbb\xbf{"id": 1}\r\n\n{"id": NaN}')
  first, second = json_files.read(path)
  assert first == {'id': 1}
  assert math.isnan(second['id'])


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'has no rows'),
    (b'[]', 'has no rows'),
    (b'[{"id": 1}', 'is no JSON list'),
    (b'[{"id": 1}, 2]', 'row 2: not a JSON object but int'),
    (b'{"id": 1}\n{"id":', 'line 2: not valid JSON'),
    (b'\xff\xfe', 'is not UTF-8'),
    (gzip.compress(json.dumps(ROWS).encode(), mtime=0)[:-9], 'cut short'),
    (b'[' * 100_000, 'is no JSON list'),
  ],
)
def test_bad_file_is_refused(tmp_path, content, message):
  path = tmp_path / 'rows'
  path.write_bytes(content)
  with pytest.raises(UserError, match=message) as error:
    json_files.read(path)
  assert str(path) in str(error.value)


def test_missing_file_is_refused(tmp_path):
  with pytest.raises(UserError, match='No such file'):
    json_files.read(tmp_path / 'none.json')
