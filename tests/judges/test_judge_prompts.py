"""Templates: the prompts that are sent, and FastChat's file of prompts."""

import json

import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.judges.judge_prompts import SUMMARIES, pairwise_template, read_prompts
from nlhf_jax.judges.verdicts import Answer


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
  others = [
    {**row, 'name': 'single-v1', 'type': 'single', 'prompt_template': '{question}{answer}'},
    {**row, 'name': 'pair-math-v1', 'prompt_template': '{question}{ref_answer_1}'},
    {**row, 'name': 'pair-rated', 'output_format': '[[rating_a,rating_b]]'},
  ]
  path = folder / 'judge_prompts.jsonl'
  path.write_text('\n'.join(json.dumps(it) for it in ({**row, **changes}, *others)) + '\n')
  return path


def test_mt_bench_prompt_comes_from_its_file(tmp_path):
  template = pairwise_template(prompts(tmp_path), 'pair-v2')
  system, user = template.messages('why {x}?', 'so', 'no')
  assert system['content'].endswith('Braces {here} stay.')
  assert user == {'role': 'user', 'content': 'Q: why {x}? {}\nA: so\nB: no'}
  assert template.read(Answer('[[B]]')) == 0.0


def test_output_format_chooses_the_reader(tmp_path):
  assert pairwise_template(prompts(tmp_path), 'pair-rated').read(Answer('[[9,3]]')) == 1.0


@pytest.mark.parametrize(
  ('name', 'changes', 'sentence'),
  [
    ('pair-v3', {}, r"no pairwise 'pair-v3' .*choose one of \['pair-rated', 'pair-v2'\]"),
    ('pair-math-v1', {}, r"no pairwise 'pair-math-v1' with the fields"),
    ('single-v1', {}, r"no pairwise 'single-v1'"),
    (
      'pair-v2',
      {'prompt_template': 'a brace { too many'},
      r"row 1: field 'prompt_template' cannot",
    ),
    ('pair-v2', {'prompt_template': '{question.__class__}'}, "'question.__class__' is not a plain"),
    ('pair-v2', {'prompt_template': '{question:>9999999999}'}, "'question' is not a plain name"),
    ('pair-v2', {'prompt_template': '{}'}, "field '' is not a plain name"),
    ('pair-v2', {'prompt_template': 7}, r"row 1: field 'prompt_template' is 7; it must be text"),
    ('pair-v2', {'system_prompt': None}, r"row 1: field 'system_prompt' is None"),
    ('pair-v2', {'output_format': '[[A or B]]'}, r"output_format of 'pair-v2' is '\[\[A or B\]\]'"),
    ('pair-v2', {'name': 'pair-rated'}, r"row 4: a row before is called 'pair-rated'"),
  ],
)
def test_unsuitable_prompts_are_refused(name, changes, sentence, tmp_path):
  with pytest.raises(UserError, match=sentence):
    pairwise_template(prompts(tmp_path, **changes), name)


@pytest.mark.parametrize('text', ['{', '[]\n', '3\n', '{"name": []}\n', '\ud800'])
def test_other_files_are_refused(text, tmp_path):
  path = tmp_path / 'it.jsonl'
  path.write_bytes(text.encode('utf-8', 'surrogatepass'))
  with pytest.raises(UserError, match=r'it\.jsonl'):
    pairwise_template(path, 'pair-v2')


def test_missing_file_is_named(tmp_path):
  with pytest.raises(UserError, match=r'cannot read .*nowhere\.jsonl.: No such file'):
    read_prompts(tmp_path / 'nowhere.jsonl')
