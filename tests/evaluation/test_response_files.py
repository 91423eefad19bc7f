"""Files of responses in every layout, and the cache of judgements."""

import json

import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import judgements, response_files
from nlhf_jax.evaluation.judgements import Question
from nlhf_jax.storage import json_files

ALPACA = [{'instruction': 'Say hi.', 'output': 'Hi!', 'generator': 'polite'}]


@pytest.mark.parametrize(
  ('rows', 'expected'),
  [
    (ALPACA, {'polite': {'Say hi.': 'Hi!'}}),
    ([{'instruction': 'a', 'output': 'b'}], {None: {'a': 'b'}}),
    (
      [{'prompt': 'a', 'response': 'b'}, {'prompt': 'c', 'response': ''}],
      {None: {'a': 'b', 'c': ''}},
    ),
    (
      [{'prompt': 'a', 'responses': {'sft': 'x', 'nash': 'y'}, 'tokens': {}}],
      {'sft': {'a': 'x'}, 'nash': {'a': 'y'}},
    ),
  ],
)
@pytest.mark.parametrize('write', [json_files.write_list, json_files.write_lines])
def test_every_layout_is_read(tmp_path, rows, expected, write):
  path = tmp_path / 'file.json.gz'
  write(path, rows)
  found = response_files.read(path)
  assert {name: dict(filed.responses) for name, filed in found.items()} == expected


def test_annotations_contain_responses(tmp_path):
  rows = [{'index': 0, 'output': 'Hello.', 'preference': 1.25, 'generator_2': 'mine'}]
  json_files.write_lines(tmp_path / 'mine.jsonl', rows)
  ((name, filed),) = response_files.read(tmp_path / 'mine.jsonl', ALPACA).items()
  assert (name, filed.responses) == ('mine', {'Say hi.': 'Hello.'})
  assert filed.annotations[0]['preference'] == 1.25
  assert filed.annotations[0]['output_1'] == 'Hi!'


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    ([{'prompt': 'a'}], 'row 1: it must have its response in one of the fields'),
    ([{'prompt': 'a', 'output': 'b', 'answer': 'c'}], 'has output, answer; rename or remove'),
    ([{'prompt': 'a', 'response': 'b'}, {'prompt': 'c'}], "row 2: field 'response' is missing"),
    (
      [{'prompt': 'a', 'response': 'b'}, {'prompt': 'a', 'response': 'c'}],
      'row 2: its prompt is that of row 1',
    ),
    ([{'prompt': 'a', 'response': None}], "row 1: field 'response' is None"),
    (
      [{'prompt': 'a', 'responses': {'x': 'b'}}, {'prompt': 'c', 'responses': {}}],
      "row 2: there is no response of 'x'",
    ),
    ([*ALPACA, *ALPACA], 'row 2: its prompt is that of row 1'),
  ],
)
def test_bad_row_is_named(tmp_path, rows, message):
  json_files.write_lines(tmp_path / 'bad.jsonl', rows)
  with pytest.raises(UserError, match=message):
    response_files.read(tmp_path / 'bad.jsonl')


class CountingJudge:
  """A judge that prefers the left and the longer response, and records its questions."""

  def __init__(self):
    self.asked = []

  def __call__(self, prompts, left, right):
    self.asked += zip(prompts, left, right, strict=True)
    longer = np.array([len(a) - len(b) for a, b in zip(left, right, strict=True)])
    chance = np.clip(0.6 + 0.1 * longer, 0, 1)
    return np.where([prompt == 'silence' for prompt in prompts], np.nan, chance)


PROMPTS = ['one', 'two']
RESPONSES = {'a': ['xx', 'same'], 'b': ['x', 'same'], 'c': ['xxxx', 'other']}


def test_all_pairs_are_judged_once_in_both_orders(tmp_path):
  read, path = CountingJudge(), tmp_path / 'kept' / 'judge.jsonl'
  shown = judgements.compare_all_pairs(judgements.make_cached_judge(path, read), PROMPTS, RESPONSES)
  # Two responses to the second prompt are equal: two of its pairs are the same, and one is a tie.
  assert len(read.asked) == len(set(read.asked)) == 6 + 2
  assert shown[0, 0, 1] == pytest.approx(0.7)
  assert shown[0, 1, 0] == pytest.approx(0.5)
  assert shown[1, 0, 1] == 0.5
  both = judgements.combine_orders(shown)
  assert both[0, 0, 1] == pytest.approx(0.6)
  np.testing.assert_array_equal(both + both.swapaxes(1, 2), 1)
  again = CountingJudge()
  np.testing.assert_array_equal(
    judgements.compare_all_pairs(judgements.make_cached_judge(path, again), PROMPTS, RESPONSES),
    shown,
  )
  assert again.asked == []


def test_truncated_cache_loses_one_line(tmp_path):
  path = tmp_path / 'judge.jsonl'
  first = judgements.compare_all_pairs(
    judgements.make_cached_judge(path, CountingJudge()), PROMPTS, RESPONSES
  )
  path.write_bytes(path.read_bytes()[:-9])
  again = CountingJudge()
  second = judgements.compare_all_pairs(
    judgements.make_cached_judge(path, again), PROMPTS, RESPONSES
  )
  np.testing.assert_array_equal(first, second)
  assert len(again.asked) == 1
  assert len([json.loads(line) for line in path.open()]) == 8


def test_missing_verdict_is_judged_again(tmp_path):
  read, path = CountingJudge(), tmp_path / 'judge.jsonl'
  ask = judgements.make_cached_judge(path, read)
  question = Question('silence', 'x', 'y', ('a', 'b'))
  for _ in range(2):
    assert np.isnan(ask([question])).all()
  assert len(read.asked) == 2
  assert not path.read_text()


def test_order_consistency_measures_position_bias():
  shown, texts = np.full((5, 2, 2), 0.5), {'a': ['x'] * 5, 'b': ['y'] * 5}
  shown[:, 0, 1], shown[:, 1, 0] = 0.9, 0.4  # being left adds 0.15
  found = judgements.order_consistency(shown, texts)
  assert found['first_place'] == pytest.approx(0.15)
  assert found['consistency'] == 1
  shown[:, 1, 0] = 0.8
  assert judgements.order_consistency(shown, texts)['consistency'] == 0


def test_two_ties_are_consistent_and_equal_texts_are_left_out():
  shown, texts = np.full((4, 2, 2), 0.5), {'a': ['x'] * 4, 'b': ['y', 'y', 'y', 'x']}
  shown[1, 0, 1], shown[2] = 0.9, [[0.5, 0.9], [0.9, 0.5]]
  # A tie in both orders, a tie in one, a contradiction; the last pair is of equal texts.
  found = judgements.order_consistency(shown, texts)
  assert found == {'consistency': pytest.approx(1.5 / 3), 'first_place': pytest.approx(1.2 / 6)}
  alike = judgements.order_consistency(shown[3:], {'a': ['x'], 'b': ['x']})
  assert np.isnan(list(alike.values())).all()
