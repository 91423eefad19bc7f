"""Damage is found, set aside and reported; what remains is exactly what was written."""

import json
import math
from functools import partial

import numpy as np
import pytest

from nlhf_jax.data import token_store
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import judgements
from nlhf_jax.evaluation.judgements import Question
from nlhf_jax.experiments.evaluate.cached_responses import read_responses
from nlhf_jax.storage import json_lines
from nlhf_jax.training.trackers import COPY, FILE, Metrics, read_curve

RECORDS = [{'step': 1, 'loss': 0.5}, {'step': 2, 'text': 'a\nb'}, {'step': 3, 'none': None}]


def flip(path, place):
  """Changes one bit of a file."""
  content = bytearray(path.read_bytes())
  content[place] ^= 1 << place % 7
  path.write_bytes(content)


def set_aside(folder):
  return sorted(path.name for path in folder.iterdir() if '.damaged' in path.name)


def test_any_flipped_bit_of_a_line_is_found(tmp_path, capsys):
  path = tmp_path / 'lines.jsonl'
  json_lines.append(path, RECORDS)
  whole = path.read_bytes()
  for place in range(0, len(whole), 2):
    path.write_bytes(whole)
    flip(path, place)
    read = json_lines.read(path)
    assert len(read) >= len(RECORDS) - 2  # a flipped end of a line damages two
    assert all(record in RECORDS for record in read)
    printed = capsys.readouterr().out
    if len(read) < len(RECORDS) and place < len(whole) - 1:
      assert 'damaged; the others are used, and the file is kept as lines.jsonl.damaged' in printed
    assert json_lines.read(path) == read
    assert not capsys.readouterr().out  # it is reported once
    for name in set_aside(tmp_path):
      (tmp_path / name).unlink()


def test_any_flipped_bit_of_a_value_is_found(tmp_path, capsys):
  path = tmp_path / 'value.json'
  json_lines.write_sealed(path, {'done': False, 'seconds': math.inf, 'settings': {'tau': 0.1}})
  whole = path.read_bytes()
  for place in range(len(whole) - 1):
    path.write_bytes(whole)
    flip(path, place)
    assert json_lines.read_sealed(path) is None
    assert not path.exists()
    assert f'{path} is damaged and is made again; it is kept as' in capsys.readouterr().out
  path.write_bytes(whole)
  assert json_lines.read_sealed(path)['seconds'] == math.inf


def test_missing_numbers_are_no_damage(tmp_path):
  path = tmp_path / 'value.json'
  json_lines.write_sealed(path, {'ratio': math.nan, 'pair': (1, 2)})
  value = json_lines.read_sealed(path)
  assert math.isnan(value['ratio'])
  assert value['pair'] == [1, 2]


@pytest.mark.parametrize('content', [b'\0' * 99, b'\xff' * 9, b'[1, 2', b'text'])
def test_content_that_is_no_record_is_set_aside(tmp_path, content):
  path = tmp_path / 'lines.jsonl'
  path.write_bytes(content)
  assert json_lines.read(path) == []
  assert (tmp_path / 'lines.jsonl.damaged').read_bytes() == content


@pytest.mark.parametrize('content', [b'', b'\0' * 40, b'\xff\xfe', b'[1]', b'3', b'{"a": 1}'])
def test_a_replaced_value_is_found(tmp_path, content):
  path = tmp_path / 'value.json'
  path.write_bytes(content)
  assert json_lines.read_sealed(path) is None
  assert set_aside(tmp_path) == ['value.json.damaged']


def test_records_follow_those_without_checksums(tmp_path):
  path = tmp_path / 'lines.jsonl'
  json_lines.write(path, RECORDS[:2])
  json_lines.append(path, RECORDS[2:])
  assert json_lines.read(path) == RECORDS
  assert not set_aside(tmp_path)


@pytest.mark.parametrize('name', [token_store.DIGESTS, token_store.ACCOUNT, 'prompts.ends'])
def test_damaged_tokens_are_made_again(tmp_path, name, capsys):
  folder, made = tmp_path / 'data', []

  def write(draft):
    made.append(draft)
    (draft / token_store.ACCOUNT).write_text('{"rows": 3}')
    np.arange(9).tofile(draft / 'prompts.ends')

  for _ in range(2):
    token_store.write_once(folder, write)
  assert len(made) == 1
  before = {path.name: path.read_bytes() for path in folder.iterdir()}
  flip(folder / name, 5)
  token_store.write_once(folder, write)
  assert len(made) == 2
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
  assert 'data is damaged and is made again; it is kept as data.damaged' in capsys.readouterr().out


def test_an_unreadable_source_is_not_a_full_disk(tmp_path):
  def write(draft):
    (draft / 'tokens').write_bytes(b'1')
    (tmp_path / 'none.jsonl').read_text()

  with pytest.raises(UserError, match=r"^cannot read '.*none.jsonl': No such file or directory"):
    token_store.write_once(tmp_path / 'kept' / 'data', write)


@pytest.mark.parametrize('value', [7.0, -0.1, math.nan, math.inf, None, '0.5', True])
def test_a_judgement_that_is_no_probability_is_asked_again(tmp_path, value, capsys):
  path, asked = tmp_path / 'judge.jsonl', []

  def judge(prompts, left, right):
    asked.extend(prompts)
    return np.full(len(prompts), 0.25)

  questions = [Question(prompt, 'x', 'y', ('a', 'b')) for prompt in ('one', 'two')]
  expected = judgements.make_cached_judge(path, judge)(questions)
  first, second = json_lines.read(path)
  json_lines.write(path, [first | {'preference': value}, second], sealed=True)
  asked.clear()
  found = judgements.make_cached_judge(path, judge)(questions)
  np.testing.assert_array_equal(found, expected)
  assert asked == ['one']
  assert '1 of 2 judgements are no probabilities' in capsys.readouterr().out


def test_damaged_responses_are_sampled_again(tmp_path):
  path = tmp_path / 'responses.jsonl'
  json_lines.append(path, [{'batch': 'a', 'texts': ['x']}, {'batch': 'b', 'texts': 3}, {'c': 1}])
  assert read_responses(path) == {'a': ['x']}
  assert read_responses(path) == {'a': ['x']}
  assert set_aside(tmp_path) == ['responses.jsonl.damaged']


# --- Learning curves ---


@pytest.fixture
def curve(tmp_path):
  """A folder with the curve of a stage of six steps, and its records."""
  metrics = Metrics(tmp_path, 'sft', 0)
  for step in (2, 4, 6):
    metrics.write(step, {'loss': 1 / step, 'none': math.nan})
  metrics.close()
  return tmp_path, [{'stage': 'sft', 'step': s, 'loss': 1 / s, 'none': None} for s in (2, 4, 6)]


def lose(path):
  path.unlink()


def empty(path):
  path.write_bytes(b'')


def truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_a_line(path):
  path.write_bytes(b''.join(path.read_bytes().splitlines(keepends=True)[1:]))


DAMAGES = [lose, empty, truncate, drop_a_line, *(partial(flip, place=at) for at in (9, 34, 95))]


@pytest.mark.parametrize('damage', DAMAGES)
@pytest.mark.parametrize('name', [FILE, COPY])
@pytest.mark.parametrize('resumed', [False, True])
def test_a_curve_survives_damage_to_either_file(curve, damage, name, resumed, capsys):
  folder, records = curve
  damage(folder / name)
  if resumed:
    Metrics(folder, 'sft', 6).close()
    assert [json.loads(line) for line in (folder / FILE).open()] == records
    assert json_lines.read(folder / COPY) == records
  assert read_curve(folder) == records
  if name == FILE:
    assert 'metrics.jsonl' in capsys.readouterr().out


def test_a_lost_curve_is_said(curve, capsys):
  folder, _ = curve
  for name in (FILE, COPY):
    lose(folder / name)
  with pytest.raises(UserError, match=r'the learning curve in .* is lost; its parameters are safe'):
    read_curve(folder)
  assert read_curve(folder, steps=0) == []
  Metrics(folder, 'sft', 4).close()
  assert 'the learning curve from step 1 to 4 is lost' in capsys.readouterr().out
