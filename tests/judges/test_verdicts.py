"""Readers of what judges write: choices, ratings, labels."""

import json
import math

import pytest

from nlhf_jax.judges.judge_prompts import SUMMARIES
from nlhf_jax.judges.verdicts import (
  FIRST_MATCH,
  Answer,
  read_choice,
  read_label,
  read_rating,
  read_two_ratings,
)

READERS = {
  'pairwise': read_choice,
  'rating': read_rating,
  'pair_rating': read_two_ratings,
  'label_logprobs': read_label,
}
RIGHT = {'A': [1.0], 'B': [0.0], 'tie': [0.5], None: [None], '1 or none': [1.0, None]}


def answer(text='', **first):
  return Answer(text, {token: math.log(p) for token, p in first.items()})


def test_field_answers_are_read_right(shared):
  lines = (shared / 'field/judges/verdict_texts.jsonl').read_text().splitlines()
  assert len(lines) > 20
  for row in map(json.loads, lines):
    given = Answer(row['text'], {'1': -0.5, '2': -1.0}, cut=row['finish_reason'] == 'length')
    found = READERS[row['reader']](given)
    right = row['right']
    assert found in RIGHT.get(right, [right]), row


@pytest.mark.parametrize(
  ('text', 'chance'),
  [
    ('A is longer, but B is right. My verdict is [[B]]', 0.0),
    ('[[A]]. To say it again: [[A]]', 1.0),
    ('[[C]]', 0.5),
    ('A', 1.0),
    ('**b**.', 0.0),
    ('tie', 0.5),
    ('[[A]] and then [[7.5]]', 1.0),
    (r'\[\[B\]\]', 0.0),
    ('[[ Assistant B ]]', 0.0),
    ('[[B<A]]', 1.0),
    ('[[a >> b]]', 1.0),
    ('[[B=A]]', 0.5),
    ('[[A>A]]', None),
    ('[[A]] or [[B]]? It must be [[B]].', 0.0),
    ('[[B]], not [[A]]', 0.0),
    ('I would not say [[A]].', None),
    ('[[B]] is better than [[A]].', 0.0),
    ('I take [[A]] over [[B]].', 1.0),
    ('Either [[A]] or [[B]].', None),
    ('"[[A]]", "[[B]]", or "[[C]]"', None),
    ('[[A]] and [[B]] are alike.', None),
    ('[[A]] if the first is better, [[B]] if the second is, and [[C]] for a tie', None),
    ('[[A]], I mean [[D]]', None),
    ('A good question.', None),
    ('[A]', None),
    ('[[D]]', None),
    ('', None),
  ],
)
def test_last_choice_counts(text, chance):
  assert read_choice(answer(text)) == chance


@pytest.mark.parametrize(
  'text',
  [
    '<thinking>[[A]]</thinking> [[B]]',
    '< THINK >[[A]]\n</THINK >\n\n[[B]]',
    '[THINK][[A]][/THINK][[B]]',
    '◁think▷[[A]]◁/think▷[[B]]',
    'no opening tag, as R1: [[A]]</think>[[B]]',
    '<|channel|>analysis<|message|>[[A]]<|end|><|start|>assistant<|channel|>final<|message|>[[B]]',
    '<think>[[A]]</think><think>[[A]]</think>[[B]]<|im_end|>',
  ],
)
def test_thinking_is_no_part_of_the_answer(text):
  assert read_choice(answer(text)) == 0.0
  unclosed = text.rpartition('[[B]]')[0].rstrip('>') + ' <think> so [[A]]'
  assert read_choice(answer(unclosed)) is None


@pytest.mark.parametrize('read', READERS.values())
@pytest.mark.parametrize(
  'text', ['<think>', '</think>', '[[', '[[]]', '[[ ]]', '[[,]]', '[[-]]', '\0']
)
def test_fragments_have_no_verdict(read, text):
  assert read(answer(text)) is None


def test_cut_answers_need_a_verdict_at_their_end():
  for text, right in {
    'So: [[A]]': 1.0,
    '[[A]].**': 1.0,
    '[[A]] is': None,
    '[[A]] [[': None,
  }.items():
    assert read_choice(Answer(text, cut=True)) == right
  assert read_label(Answer('1', cut=True)) == 1.0
  assert read_label(Answer('1\n\nIt has more', cut=True)) is None
  assert read_rating(Answer('Rating: [[7]] because', cut=True)) is None


@pytest.mark.parametrize(
  ('text', 'rating'),
  [
    ('Rating: [[7]]', 7),
    ('[[8.5]], or rather: [[2]]', 2),
    ('I say [5], finally [[6]]', 6),
    ('Rating: [5]', 5),
    ('Score: **[7]**', 7),
    ('Fine.\n\n[7]\n', 7),
    ('[[ **9** ]]', 9),
    ('[[10.0]]', 10),
    ('[[9/10]]', None),
    ('[[8]], that is [[9/10]]', None),
    ('from [[1]] to [[10]]', None),
    ('[[8]] out of [[10]]', None),
    ('Rating: [[8]] (on the scale [[1]]-[[10]])', 8),
    ('As in [3], a 6.', None),
    ('Rating: [7](https://x)', None),
    ('Rating: 7', None),
    ('[[0]]', None),
    ('[[10.5]]', None),
    ('[[-3]]', None),
    ('[[1e1]]', None),
    ('[[' + '9' * 40 + ']]', None),
    ('$ERROR$', None),
  ],
)
def test_last_rating_on_the_scale_counts(text, rating):
  assert read_rating(answer(text)) == rating


@pytest.mark.parametrize(
  ('text', 'chance'),
  [
    ('[[8, 7.5]]', 1.0),
    ('[[8,8.1]]', 0.5),
    ('[2, 9]', 0.0),
    ('Ratings: [2, 9]', 0.0),
    ('[[8,7]] no, [[7,8]]', 0.0),
    ('[[8]]', None),
    ('[[8,12]]', None),
    ('[[8,7,6]]', None),
    ('in x[8, 7] it', None),
  ],
)
def test_two_ratings_are_compared(text, chance):
  assert read_two_ratings(answer(text)) == chance


@pytest.mark.parametrize(
  ('output_format', 'text', 'verdict'),
  [
    ('[[rating]]', '[[8.5]] and [[2]]', 8.5),
    ('[[rating]]', '<think>[[3]]</think>[[9]]', 3),
    ('[[rating]]', 'list[3]', 3),
    ('[[rating]]', '[[15]]', 15),
    ('[[rating]]', '[[-3]]', None),
    ('[[A]]', '[[B]] no, [[A]]', 1.0),
    ('[[A]]', '[[a]]', None),
    ('[[rating_a,rating_b]]', '[[8, 7.5]] [[1,2]]', 1.0),
    ('[[rating_a,rating_b]]', '[[8]]', None),
  ],
)
def test_fastchat_reads_the_first_match(output_format, text, verdict):
  assert FIRST_MATCH[output_format](answer(text)) == verdict


@pytest.mark.parametrize(
  ('first', 'chance'),
  [
    ({'1': 0.6, '2': 0.2}, 0.75),
    ({'1': 0.3, ' 1': 0.3, '"2"': 0.2}, 0.75),  # every spelling of a label
    ({'1': 0.4, '2': 0.2, 'Tie': 0.2}, 0.625),
    ({'2': 1.0}, 0.0),
  ],
)
def test_probability_is_the_share_of_labels(first, chance):
  text = next(iter(first))
  assert SUMMARIES.read(answer(text, **first)) == pytest.approx(chance, abs=1e-12)


@pytest.mark.parametrize(
  ('text', 'first', 'chance'),
  [
    ('Summary 2', {'Summary': 0.9, '1': 0.05}, 0.0),
    ('1. Summary 2 is short.\n\nPreferred: 2', {'1': 0.9, '2': 0.1}, 0.0),
    ('1.\nSummary 2 is short.\n\nPreferred: 1', {'1': 0.6, '2': 0.4}, 1.0),
    ('2', {'1': 0.9, '2': 0.1}, 0.0),  # of the thinking, which the server left out
    ('<think>1</think>2', {'1': 0.9}, 0.0),
  ],
)
def test_log_probabilities_count_for_a_bare_label(text, first, chance):
  assert SUMMARIES.read(answer(text, **first)) == chance


@pytest.mark.parametrize(
  ('text', 'chance'),
  [
    ('1', 1.0),
    (' **2**\n', 0.0),
    ('(1)', 1.0),
    ('Summary 1.', 1.0),
    ('2\n\nSummary 2 has more of the facts than summary 1.', 0.0),
    ('Tie', 0.5),
    ("It's a tie.", 0.5),
    ('Preferred Summary - 1', 1.0),
    ('**Preferred Summary:** Summary 2', 0.0),
    ('My final answer is: 2.', 0.0),
    ('Summary 1 is better.', 1.0),
    ('Summary 2 is much better than summary 1.', 0.0),
    ('I think that summary 1 is the better summary overall.', 1.0),
    ('I would prefer summary 2 over summary 1.', 0.0),
    ('The better summary is number 2, because it is short.', 0.0),
    ('While summary 1 is not bad, summary 2 is better.', 0.0),
    ('In style summary 1 is better. Overall, summary 2 is better.', 0.0),
    ('Summary 1 is better written, but the other is right.', None),
    ('Summary 1 is not better than summary 2.', None),
    ('Is it that summary 1 is better?', None),
    ('If facts matter, then it follows that summary 1 is better', 1.0),
    ('Whether summary 1 is better is hard to say.', None),
    ('1. Good.\n2. Bad.', None),
    ('', None),
    ('12', None),
    ('1/2', None),
    ('1 or 2', None),
    ('Neither 1', None),
    ('Preferred Summary - 1, because it is short', 1.0),
    ('**Answer:** 2 (more of the facts)', 0.0),
    ('Answer: 1 or 2', None),
    ('Answer: 1/2', None),
    ('**Summary 1**\nGood.\n\n**Summary 2**\nShort.\n\nHard to say.', None),
    ('Summary 1:\nGood.\n\nSummary 2:\nShort.\n\nHard to say.', None),
    ('# Summary 1\nGood.\n# Summary 2\nShort.\n\nAnswer: 1', 1.0),
    ('1.\nGood.\n2.\nShort.\n\n1', 1.0),
    ('Both are good.', None),
    ('I cannot say that summary 1 is better.', None),
  ],
)
def test_only_verdicts_are_labels(text, chance):
  assert SUMMARIES.read(answer(text)) == chance


def test_long_answers_are_read_in_time():
  for piece in ('[[', '[[A]] or ', 'summary 1 is ', '1 ', 'score ', 'not ', '<think>', '\n'):
    for read in READERS.values():
      read(answer(piece * 2_000))
