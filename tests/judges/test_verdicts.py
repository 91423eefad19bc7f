"""Templates: the prompts that are sent, and how answers are parsed."""

import json
import math

import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.judges.verdicts import SUMMARIES, Answer, mt_bench, read_bracketed


def answer(text='', **first):
  return Answer(text, {token: math.log(p) for token, p in first.items()}, 0, 0)


def test_summaries_template_has_the_papers_fields():
  (message,) = SUMMARIES.messages('a text', 'one', 'two')
  assert message['role'] == 'user'
  lines = message['content'].split('\n\n')
  assert lines[1:] == [
    'Text - a text',
    'Summary 1 - one',
    'Summary 2 - two',
    'Preferred Summary -',
  ]


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
  assert SUMMARIES.read(answer('2', **first)) == pytest.approx(chance, abs=1e-12)


def test_improbable_labels_are_ignored():
  assert SUMMARIES.read(answer('Summary 2', Summary=0.9, **{'1': 0.05})) == 0.0


@pytest.mark.parametrize(
  ('text', 'chance'),
  [
    ('1', 1.0),
    (' **2**\n', 0.0),
    ('Summary 1.', 1.0),
    ('2\n\nSummary 2 has more of the facts than summary 1.', 0.0),
    ('Tie', 0.5),
    ('', None),
    ('12', None),
    ('1 or 2', None),
    ('Both are good.', None),
    ('I cannot say that summary 1 is better.', None),
  ],
)
def test_only_verdicts_are_parsed(text, chance):
  assert SUMMARIES.read(answer(text)) == chance


@pytest.mark.parametrize(
  ('text', 'chance'),
  [
    ('A is longer, but B is right. My verdict is [[B]]', 0.0),
    ('[[A]]. To say it again: [[A]]', 1.0),
    ('[[C]]', 0.5),
    ('A', 1.0),
    ('tie', 0.5),
    ('Either [[A]] or [[B]].', None),
    ('A good question.', None),
    ('[[D]]', None),
    ('', None),
  ],
)
def test_mt_bench_verdict_is_in_brackets(text, chance):
  assert read_bracketed(answer(text)) == chance


def prompts(folder, **changes):
  row = {
    'name': 'pair-v2',
    'type': 'pairwise',
    'system_prompt': 'Judge, and end with [[A]], [[B]] or [[C]]. Braces {here} stay.',
    'prompt_template': 'Q: {question} {{}}\nA: {answer_a}\nB: {answer_b}',
    'description': '',
    'category': 'general',
    'output_format': '[[A]]',
  }
  math_row = {**row, 'name': 'pair-math-v1', 'prompt_template': '{question}{ref_answer_1}'}
  single = {'name': 'single-v1', 'type': 'single', 'prompt_template': '{question}{answer}'}
  path = folder / 'judge_prompts.jsonl'
  path.write_text('\n'.join(json.dumps(it) for it in (single, {**row, **changes}, math_row)) + '\n')
  return path


def test_mt_bench_prompt_comes_from_its_file(tmp_path):
  template = mt_bench(prompts(tmp_path), 'pair-v2')
  system, user = template.messages('why {x}?', 'so', 'no')
  assert system['content'].endswith('Braces {here} stay.')
  assert user == {'role': 'user', 'content': 'Q: why {x}? {}\nA: so\nB: no'}
  assert template.read(answer('[[B]]')) == 0.0


@pytest.mark.parametrize(
  ('name', 'changes', 'sentence'),
  [
    ('pair-v3', {}, r"no pairwise 'pair-v3' .*choose one of \['pair-v2'\]"),
    ('pair-math-v1', {}, r"no pairwise 'pair-math-v1' with the fields"),
    ('single-v1', {}, r"no pairwise 'single-v1'"),
    ('pair-v2', {'prompt_template': 'a brace { too many'}, "not in the layout of FastChat's"),
    ('pair-v2', {'prompt_template': 7}, "not in the layout of FastChat's"),
    ('pair-v2', {'system_prompt': None}, "not in the layout of FastChat's"),
  ],
)
def test_unsuitable_prompts_are_refused(name, changes, sentence, tmp_path):
  with pytest.raises(UserError, match=sentence):
    mt_bench(prompts(tmp_path, **changes), name)


@pytest.mark.parametrize('text', ['{', '[]\n', '3\n', '{"name": []}\n', '\ud800'])
def test_other_files_are_refused(text, tmp_path):
  path = tmp_path / 'it.jsonl'
  path.write_bytes(text.encode('utf-8', 'surrogatepass'))
  with pytest.raises(UserError, match="not in the layout of FastChat's"):
    mt_bench(path, 'pair-v2')


def test_missing_file_is_named(tmp_path):
  with pytest.raises(UserError, match=r'cannot read .*nowhere\.jsonl.: No such file'):
    mt_bench(tmp_path / 'nowhere.jsonl', 'pair-v2')
