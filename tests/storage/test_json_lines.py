"""Files are complete or absent, and an incomplete record is dropped."""

import pytest

from nlhf_jax.storage import json_lines

RECORDS = [{'step': 1, 'loss': 0.5}, {'step': 2, 'text': 'caf\u00e9\u2028\n"quoted" \U0001f389'}]


def test_records_round_trip(tmp_path):
  path = tmp_path / 'new' / 'folder' / 'lines.jsonl'
  json_lines.write(path, RECORDS)
  assert json_lines.read(path) == RECORDS
  assert len(path.read_text().splitlines()) == len(RECORDS)


def test_a_value_round_trips(tmp_path):
  json_lines.write_json(tmp_path / 'value.json', RECORDS[1])
  assert json_lines.read_json(tmp_path / 'value.json') == RECORDS[1]


def test_no_file_has_no_records(tmp_path):
  assert json_lines.read(tmp_path / 'none.jsonl') == []
  json_lines.write(tmp_path / 'empty.jsonl', [])
  assert json_lines.read(tmp_path / 'empty.jsonl') == []


@pytest.mark.parametrize('length', range(1, 20))
def test_an_incomplete_last_line_is_dropped(tmp_path, length):
  path = tmp_path / 'lines.jsonl'
  json_lines.write(path, RECORDS)
  whole = path.read_bytes()
  path.write_bytes(whole[:-length])
  assert json_lines.read(path) == RECORDS[:1]


@pytest.mark.parametrize('before', [None, 'old'])
@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
def test_an_interrupted_write_changes_nothing(tmp_path, before, error):
  path = tmp_path / 'results.json'
  if before:
    path.write_text(before)
  with pytest.raises(error), json_lines.atomic_write(path) as draft:  # noqa: PT012
    draft.write_text('half of the n')
    raise error
  assert path.exists() == bool(before)
  assert not before or path.read_text() == before


def test_a_failed_write_keeps_the_old_records(tmp_path):
  path = tmp_path / 'lines.jsonl'
  json_lines.write(path, RECORDS)
  with pytest.raises(TypeError):
    json_lines.write(path, [{'step': 3}, {'step': object()}])
  assert json_lines.read(path) == RECORDS


def test_the_last_of_two_writes_wins(tmp_path):
  path = tmp_path / 'results.json'
  json_lines.write_json(path, {'try': 1})
  json_lines.write_json(path, {'try': 2})
  assert json_lines.read_json(path) == {'try': 2}
  assert [found.name for found in tmp_path.iterdir()] == ['results.json']
