"""Malformed files of responses and annotations are refused in one sentence, or read right."""

import gzip
import json

import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import response_files
from nlhf_jax.storage import json_files
from tests.evaluation.malformed_files import GOOD, REFERENCES, ROWS, inputs

INPUTS = list(inputs())


def test_there_are_more_than_two_hundred_different_files():
  assert len({name for name, *_ in INPUTS}) == len(INPUTS) > 200


@pytest.mark.parametrize(
  ('content', 'good'), [it[2:] for it in INPUTS], ids=[it[0] for it in INPUTS]
)
def test_malformed_file_is_refused_or_read_right(content, good, tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(content)
  found, refused = read_or_refuse(path)
  assert bool(refused) != good
  if good:
    assert [dict(one.responses) for one in found.values()] == [GOOD]
  else:
    assert str(path) in refused
    assert len(refused.splitlines()) == 1
    assert len(refused) < 1000


def read_or_refuse(path):
  """What is read of a file, or the message of the error."""
  try:
    return response_files.read(path, REFERENCES), ''
  except UserError as error:
    return {}, str(error)


@pytest.mark.parametrize('kind', ROWS)
def test_lone_surrogates_and_nul_are_replaced(kind, tmp_path):
  path = tmp_path / 'cut.json'
  path.write_text(json.dumps(ROWS[kind]).replace('Yes, 1', 'Yes\\ud83d \\u0000 \\ud83d\\ude00'))
  (filed,) = response_files.read(path, REFERENCES).values()
  assert filed.responses == GOOD | {'Say 1.': 'Yes\ufffd \ufffd \U0001f600!'}


def test_escaped_backslash_is_no_surrogate(tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text(r'{"prompt": "a\\ud83d", "response": "\\u0000"}')
  ((_, filed),) = response_files.read(path).items()
  assert filed.responses == {r'a\ud83d': r'\u0000'}


@pytest.mark.parametrize('pack', [gzip.compress, bytes])
def test_size_is_limited(pack, tmp_path, monkeypatch):
  monkeypatch.setattr(json_files, 'MAX_BYTES', 1 << 20)
  path = tmp_path / 'bomb.json.gz'
  path.write_bytes(pack(b'[' + b' ' * (1 << 20) + b']'))
  with pytest.raises(UserError, match='has more than 1 MiB of text'):
    response_files.read(path)


@pytest.mark.parametrize(
  ('row', 'expected'),
  [
    ({'question': 'Why?', 'answer': 'So.'}, {'Why?': 'So.'}),
    ({'prompt': 'Why?', 'completion': 'So.'}, {'Why?': 'So.'}),
    ({'instruction': 'Add.', 'input': '1, 2', 'output': '3'}, {'Add.\n\n1, 2': '3'}),
    (
      {
        'prompt': [{'role': 'user', 'content': 'Why?'}],
        'response': [{'role': 'assistant', 'content': 'So.'}],
      },
      {'Why?': 'So.'},
    ),
    (
      {
        'messages': [
          {'role': 'user', 'content': 'Why?'},
          {'role': 'assistant', 'content': 'So.'},
        ]
      },
      {'Why?': 'So.'},
    ),
  ],
)
def test_common_forms_of_a_row_are_read(row, expected, tmp_path):
  json_files.write_lines(tmp_path / 'rows.jsonl', [row])
  (filed,) = response_files.read(tmp_path / 'rows.jsonl').values()
  assert filed.responses == expected
