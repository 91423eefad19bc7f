"""Pairs that are equal once they are cut are dropped, and special tokens in texts are reported."""

import json

import pytest

from nlhf_jax.data import dataset, tokenizers
from tests.data.chats import chatml, llama, save

USER = {'role': 'user', 'content': 'a'}
WORDS = ['one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight']


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  """Folders of tokenizers with chat templates."""
  folder = tmp_path_factory.mktemp('models')
  return {make.__name__: save(folder / make.__name__, *make()) for make in (chatml, llama)}


@pytest.fixture
def make(tmp_path):
  """A function that makes a corpus of rows, or of a file."""

  def make(rows, pretrained, length=24, schema='comparisons', skip_bad=False):
    path = rows
    if isinstance(rows, list):
      path = tmp_path / 'mine.jsonl'
      path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    data = dataset.FileData(str(path), schema, '', '1/1', skip_bad, 0.3, 999, length, 400)
    return dataset.make_file_corpus(data, 0, pretrained, tmp_path / 'kept')

  return make


def count(corpus, kind='comparisons'):
  return sum(corpus.account[split][kind] for split in ('train', 'held_out'))


def test_pairs_that_begin_alike_are_dropped_and_counted(make, models, shared, capsys):
  path = shared / 'field' / 'data' / 'same_start.jsonl'
  rows = [json.loads(line) for line in path.open()]
  tokenizer = tokenizers.load(models['chatml'])
  sides = [
    tokenizers.response_ids(tokenizer, [row[f] for row in rows]) for f in ('chosen', 'rejected')
  ]
  expected = sum(left[:32] == right[:32] for left, right in zip(*sides, strict=True))
  corpus = make(path, models['chatml'], 32)
  assert 50 < expected < 70
  assert count(corpus) == 120 - expected
  reason = 'both responses begin with the same config.data.response_length=32 tokens'
  assert corpus.account['dropped'] == {reason: expected}
  assert f'{path}: skipped {expected} rows: {reason}.' in capsys.readouterr().out


def test_only_equal_cuts_are_dropped(make, models):
  same = 'word ' * 30
  rows = [
    {'prompt': 'differs past the cut', 'chosen': same + 'a', 'rejected': same + 'b'},
    {'prompt': 'differs at the start', 'chosen': 'a' + same, 'rejected': 'b' + same},
    {'prompt': 'one ends before the cut', 'chosen': 'word word', 'rejected': same},
    {'prompt': 'one is the start of the other', 'chosen': same, 'rejected': same + 'word'},
    {'prompt': 'both are short', 'chosen': 'a', 'rejected': 'b'},
  ]
  assert count(make(rows, models['chatml'])) == 3
  assert count(make(rows, models['chatml']), 'prompts') == 3
  assert count(make(rows, models['chatml'], 999)) == 5
  assert count(make(rows, '')) == 3
  graded = [
    {'prompt': row['prompt'], 'left': row['chosen'], 'right': row['rejected'], 'preference': 0.5}
    for row in rows
  ]
  assert count(make(graded, models['chatml'], schema='graded')) == 3
  shown = [{'prompt': row['prompt'], 'response': row['chosen']} for row in rows]
  assert count(make(shown, models['chatml'], schema='demonstrations'), 'demonstrations') == 5


def test_templated_texts_are_said(make, models, shared, capsys):
  path = shared / 'field' / 'data' / 'templated.jsonl'
  corpus = make(path, models['chatml'], 64)
  printed = capsys.readouterr().out
  assert (
    f"{path}: 20 of 20 rows spell parts of the chat template, as '<|im_end|>', '<|im_start|>'"
    in printed
  )
  assert 'give the texts without it' in printed
  assert corpus.account['spelled'] == {'<|im_start|>': 20, '<|im_end|>': 20}
  make(path, models['llama'], 64)
  assert 'spell parts' not in capsys.readouterr().out


def test_a_template_without_special_tokens_is_said(make, tmp_path, capsys):
  model, settings = chatml()
  plain = {
    'chat_template': "{% for m in messages %}{{ '[INST] ' + m.content if m.role == 'user' "
    "else m.content + eos_token }}{{ ' [/INST]' if m.role == 'user' }}{% endfor %}"
  }
  folder = save(tmp_path / 'plain', model, settings | plain)
  rows = [{'prompt': f'[INST] {word} [/INST]', 'chosen': 'a', 'rejected': 'b'} for word in WORDS]
  make(rows, folder)
  assert "8 of 8 rows spell parts of the chat template, as '[/INST]'" in capsys.readouterr().out


@pytest.mark.parametrize(
  ('field', 'value', 'token'),
  [
    ('prompt', 'a <|eot|>', '<|eot|>'),
    (
      'prompt',
      [{'role': 'system', 'content': '<|bos|>'}, {'role': 'user', 'content': 'a'}],
      '<|bos|>',
    ),
    ('chosen', 'yes<|eot|>', '<|eot|>'),
    ('rejected', '<|head|>user', '<|head|>'),
  ],
)
def test_a_single_spelled_token_is_said(field, value, token, make, models, capsys):
  rows = [{'prompt': word, 'chosen': f'yes {word}', 'rejected': 'no'} for word in WORDS]
  make(rows, models['llama'])
  assert not capsys.readouterr().out
  make([*rows, rows[0] | {field: value}], models['llama'])
  assert (
    f"1 of 9 rows spell parts of the chat template, as '{token}', which are"
    in capsys.readouterr().out
  )
