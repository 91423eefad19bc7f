"""MT-Bench: published means from published judgements, and made-up policies."""

import json
import math
import re

import pytest
from matplotlib.figure import Figure

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks import mt_bench, mt_bench_judge, mt_bench_scores, radar
from nlhf_jax.evaluation.benchmarks.benchmark import EvaluatedPolicy, Judges
from nlhf_jax.evaluation.benchmarks.mt_bench_judge import Materials
from nlhf_jax.judges import judge_prompts
from nlhf_jax.judges.response_body import Failure
from nlhf_jax.judges.verdicts import FIRST_MATCH, READINGS, Answer
from nlhf_jax.reporting import game_plots
from nlhf_jax.storage import json_files

QUESTIONS = [
  {'question_id': 1, 'category': 'writing', 'turns': ['Write.', 'Write more.']},
  {'question_id': 2, 'category': 'math', 'turns': ['1 + 1?', 'And 2 + 2?']},
  {'question_id': 3, 'category': 'gossip', 'turns': ['Who?']},
]
TEMPLATES = {
  'single-v1': '{question} | {answer}',
  'single-v1-multi-turn': '{question_1} | {answer_1} | {question_2} | {answer_2}',
  'single-math-v1': '{question} | {answer} | {ref_answer_1}',
  'single-math-v1-multi-turn': '{question_2} | {answer_2} | {ref_answer_1} | {ref_answer_2}',
  'pair-v2': '{question} | {answer_a} | {answer_b}',
  'pair-v2-multi-turn': '{question_2} | {answer_a_1} | {answer_b_1} | {answer_a_2} | {answer_b_2}',
  'pair-math-v1': '{question} | {answer_a} | {answer_b} | {ref_answer_1}',
  'pair-math-v1-multi-turn': '{question_2} | {answer_a_2} | {answer_b_2} | {ref_answer_2}',
}
PROMPTS = {
  name: {
    'name': name,
    'system_prompt': f'You are {name}.',
    'prompt_template': template,
    'output_format': '[[A]]' if name.startswith('pair') else '[[rating]]',
  }
  for name, template in TEMPLATES.items()
}


def make_answers(policy):
  """Answers of a policy: its name and the turn."""
  return {
    question['question_id']: {
      'question_id': question['question_id'],
      'choices': [{'turns': [f'{policy}{turn + 1}' for turn in range(len(question['turns']))]}],
    }
    for question in QUESTIONS
  }


def replying(write):
  """A judge that answers each (system prompt, user prompt) with a text; its verdicts are read."""

  def ask(sheets, usable):
    answers = [Answer(text) for text in write(sheets)]
    for number, answer in enumerate(answers):
      assert usable(number, answer) in (True, False)
    return answers

  return ask


MATERIALS = Materials(QUESTIONS, {2: make_answers('ref')[2]}, PROMPTS)


@pytest.fixture(scope='module')
def published(shared):
  return shared / 'data' / 'mt_bench'


@pytest.fixture(scope='module')
def questions(published):
  return mt_bench_scores.read_questions(published / 'question.jsonl.gz')


@pytest.fixture(scope='module')
def judgements(published):
  return json_files.read(published / 'judgment_gpt4_single_orpo.jsonl.gz')


def test_published_means_are_reproduced(published, questions, judgements):
  found = mt_bench_scores.summarise(judgements, questions)
  for policy, expected in json.loads((published / 'expected.json').read_text()).items():
    figures = found[policy]
    assert figures['judged'] == expected['n']
    assert figures['turns'][1] == pytest.approx(expected['turn1'], abs=1e-12)
    assert figures['turns'][2] == pytest.approx(expected['turn2'], abs=1e-12)
    assert figures['average'] == pytest.approx(expected['average'], abs=1e-12)
    assert sorted(figures['categories']) == sorted(radar.ORDER)
  assert {policy: figures['failed'] for policy, figures in found.items()} == {
    'mistral-orpo': 1,
    'mistral-orpo-capybara': 0,
    'mistral-orpo-mix': 0,
    'mistral-orpo-trl': 0,
  }
  averages = [figures['average'] for figures in found.values()]
  assert averages == sorted(averages, reverse=True)


def test_published_judgements_are_read(judgements):
  """FastChat's reading gives the published scores; on these texts the other one does, too."""
  for readers in READINGS.values():
    for row in judgements:
      score = readers['[[rating]]'](Answer(row['judgment']))
      assert row['score'] == (mt_bench_scores.FAILED if score is None else score)


def test_judge_prompts_match_the_published_judgements(published, questions, judgements):
  references = mt_bench_scores.read_answers(published / 'reference_answer_gpt-4.jsonl.gz')
  prompts = judge_prompts.read_prompts(published / 'judge_prompts.jsonl.gz')
  answers = {
    policy: mt_bench_scores.read_answers(published / f'model_answer/{policy}.jsonl.gz')
    for policy in ('gpt-4', 'alpaca-13b')
  }
  materials = Materials(questions, references, prompts)

  @replying
  def ask(sheets):
    return [f'Fine. [[{len(user) % 10 + 1}]] [[A]]' for _, user in sheets]

  graded = mt_bench_judge.grade(ask, materials, answers, 'gpt-4')
  assert len(graded) == 320
  was = {(row['question_id'], row['turn']): row['judge'] for row in judgements}
  for row in graded:
    assert row['judge'] == was[row['question_id'], row['turn']]
    own = answers[row['model']][row['question_id']]['choices'][0]['turns']
    assert all(text in row['user_prompt'] for text in own[: row['turn']])
    if 'math' in row['judge'][1]:
      reference = references[row['question_id']]['choices'][0]['turns']
      assert reference[row['turn'] - 1] in row['user_prompt']
    assert not re.search(r'\{(question|answer|ref_answer)', row['user_prompt'])
  compared = mt_bench_judge.compare(ask, materials, answers, 'gpt-4')
  assert len(compared) == 160
  assert {row['judge'][1] for row in compared} == {name for name in prompts if 'pair' in name}
  assert (
    mt_bench_scores.count_wins(compared)['gpt-4']['tie'] == 160
  )  # the first one, in both orders


def test_turns_see_earlier_turns_at_category_temperature():
  calls = []

  def respond(conversations, temperature, seed):
    calls.append((temperature, seed, [list(messages) for messages in conversations]))
    return [f'{seed}: {messages[-1]["content"]}' for messages in conversations]

  rows = mt_bench_scores.answer(respond, QUESTIONS, 'echo', choices=2)
  assert [row['question_id'] for row in rows] == [1, 2, 3]
  assert rows[0]['choices'] == [
    {'index': seed, 'turns': [f'{seed}: Write.', f'{seed}: Write more.']} for seed in (0, 1)
  ]
  assert rows[2]['choices'][1]['turns'] == ['1: Who?']
  assert [
    (temperature, seed, len(conversations)) for temperature, seed, conversations in calls
  ] == [
    (0.7, 0, 2),
    (0.7, 0, 1),
    (0.7, 1, 2),
    (0.7, 1, 1),
    (0.0, 0, 1),
    (0.0, 0, 1),
    (0.0, 1, 1),
    (0.0, 1, 1),
  ]
  assert calls[1][2] == [
    [
      {'role': 'user', 'content': 'Write.'},
      {'role': 'assistant', 'content': '0: Write.'},
      {'role': 'user', 'content': 'Write more.'},
    ]
  ]


def test_answers_and_judgements_round_trip(tmp_path):
  rows = mt_bench_scores.answer(
    lambda conversations, *_: ['Yes.'] * len(conversations), QUESTIONS[::-1], 'yes'
  )
  mt_bench_scores.write(tmp_path / 'yes.jsonl', rows)
  answers = mt_bench_scores.read_answers(tmp_path / 'yes.jsonl')
  assert list(answers) == [1, 2, 3]
  assert answers[2]['choices'] == [{'index': 0, 'turns': ['Yes.', 'Yes.']}]
  fives = replying(lambda sheets: ['[[5]]'] * len(sheets))
  graded = mt_bench_judge.grade(fives, MATERIALS, {'yes': answers}, 'j')
  mt_bench_scores.write(tmp_path / 'j_single.jsonl', graded)
  assert sorted(graded, key=lambda row: row['question_id']) == json_files.read(
    tmp_path / 'j_single.jsonl'
  )
  sides = {'a': answers, 'b': answers}
  first = replying(lambda sheets: ['[[A]]'] * len(sheets))
  compared = mt_bench_judge.compare(first, MATERIALS, sides, 'j')
  mt_bench_scores.write(tmp_path / 'j_pair.jsonl', compared)
  read = json_files.read(tmp_path / 'j_pair.jsonl')
  assert {(row['g1_winner'], row['g2_winner']) for row in read} == {('model_1', 'model_2')}


def test_single_mode_grades_all_turns():
  seen = []

  @replying
  def ask(sheets):
    seen.extend(sheets)
    return [f'[[{3 if "low" in user else 9}]]' for _, user in sheets]

  rows = mt_bench_judge.grade(
    ask, MATERIALS, {'low': make_answers('low'), 'high': make_answers('high')}, 'j'
  )
  assert [(row['question_id'], row['turn'], row['model']) for row in rows[::2]] == [
    (1, 1, 'low'),
    (2, 1, 'low'),
    (3, 1, 'low'),
    (1, 2, 'low'),
    (2, 2, 'low'),
  ]
  assert seen[0] == ('You are single-v1.', 'Write. | low1')
  assert seen[2] == ('You are single-math-v1.', '1 + 1? | low1 | ref1')
  assert seen[7] == (
    'You are single-v1-multi-turn.',
    'Write. | high1 | Write more. | high2',
  )
  assert seen[9] == (
    'You are single-math-v1-multi-turn.',
    'And 2 + 2? | high2 | ref1 | ref2',
  )
  found = mt_bench_scores.summarise(rows, QUESTIONS)
  assert list(found) == ['high', 'low']
  assert found['low'] == {
    'average': 3,
    'turns': {1: 3, 2: 3},
    'categories': {'writing': 3, 'math': 3, 'gossip': 3},
    'categories_of_turns': {
      1: {'writing': 3, 'math': 3, 'gossip': 3},
      2: {'writing': 3, 'math': 3},
    },
    'judged': 5,
    'failed': 0,
  }


def test_win_in_one_order_only_is_a_tie():
  @replying
  def ask(sheets):
    verdicts = []
    for _, user in sheets:
      order = [user.find(policy) for policy in ('good', 'bad', 'loud')]
      shown = sorted((place, name) for place, name in zip(order, 'gbl', strict=True) if place >= 0)
      first, second = shown[0][1], shown[1][1]
      if {first, second} == {'g', 'b'}:
        verdicts.append('[[A]]' if first == 'g' else '[[B]]')
      elif 'l' in (first, second) and 'g' in (first, second):
        verdicts.append('[[A]]')  # whatever comes first
      else:
        verdicts.append('[[C]]' if first == 'b' else 'well')
    return verdicts

  answers = {policy: make_answers(policy) for policy in ('good', 'bad', 'loud')}
  rows = mt_bench_judge.compare(ask, MATERIALS, answers, 'j')
  assert len(rows) == 3 * 5
  found = mt_bench_scores.count_wins(rows)
  assert found['good'] == {
    'win': 5,
    'loss': 0,
    'tie': 5,
    'failed': 0,
    'win_rate': 0.5,
    'loss_rate': 0,
    'win_rate_adjusted': 0.75,
  }
  assert (found['bad']['win'], found['bad']['loss'], found['bad']['tie']) == (0, 5, 0)
  assert (found['loud']['win'], found['loud']['loss'], found['loud']['tie']) == (0, 0, 5)


def test_unparsable_verdicts_are_only_counted():
  silent = replying(lambda shown: [''] * len(shown))
  answers = {policy: make_answers(policy) for policy in ('one', 'other', 'third')}
  rows = mt_bench_judge.compare(silent, MATERIALS, answers, 'j')
  assert all(map(mt_bench_scores.failed, rows))
  read = {'model_1': 'one', 'model_2': 'other', 'g1_winner': 'model_1', 'g2_winner': 'model_1'}
  found = mt_bench_scores.count_wins([*rows, read])
  assert list(found) == ['one', 'other', 'third']
  assert [found['one'][name] for name in ('win', 'failed', 'win_rate')] == [1, 10, 1]
  assert found['third']['failed'] == 10
  assert math.isnan(found['third']['win_rate_adjusted'])
  graded = mt_bench_judge.grade(silent, MATERIALS, answers, 'j')
  graded[0]['score'] = 4
  scores = mt_bench_scores.summarise(graded, QUESTIONS)
  assert list(scores) == ['one', 'other', 'third']
  assert (scores['one']['average'], scores['one']['failed']) == (4, 4)
  assert (scores['third']['judged'], scores['third']['failed']) == (0, 5)
  assert math.isnan(scores['third']['average'])


@pytest.mark.parametrize(
  ('materials', 'answers', 'message'),
  [
    (MATERIALS, {'some': {}}, "'some' has 0 of 2 answers to question 1"),
    (MATERIALS, {'some': {1: make_answers('some')[3]}}, "'some' has 1 of 2 answers to question 1"),
    (
      MATERIALS._replace(references={}),
      {'some': make_answers('some')},
      "'the reference' has 0 of 2",
    ),
    (MATERIALS._replace(prompts={}), {'some': make_answers('some')}, "no prompt 'single-v1'"),
  ],
)
def test_missing_answers_and_prompts_are_named(materials, answers, message):
  ask = replying(lambda sheets: ['[[5]]'] * len(sheets))
  with pytest.raises(UserError, match=message):
    mt_bench_judge.grade(ask, materials, answers, 'j')


def test_unknown_field_of_a_prompt_is_named():
  ask = replying(lambda sheets: ['[[5]]'] * len(sheets))
  odd = {'single-v1': {**PROMPTS['single-v1'], 'prompt_template': '{persona}'}}
  with pytest.raises(UserError, match=r"'single-v1' has a field .*'persona'.*may use question"):
    mt_bench_judge.grade(ask, MATERIALS._replace(prompts=odd), {'some': make_answers('some')}, 'j')


@pytest.mark.parametrize(
  ('read', 'row', 'message'),
  [
    (mt_bench_scores.read_questions, {'question_id': '1'}, "field 'question_id' is '1'"),
    (
      mt_bench_scores.read_questions,
      {'question_id': 1, 'category': 'math', 'turns': [2]},
      "field 'turns' must be",
    ),
    (
      mt_bench_scores.read_answers,
      {'question_id': 1, 'choices': []},
      "field 'choices' has no answer",
    ),
    (judge_prompts.read_prompts, {'name': 'pair-v2'}, "field 'system_prompt' is missing"),
  ],
)
def test_bad_row_is_named(tmp_path, read, row, message):
  json_files.write_lines(tmp_path / 'rows.jsonl', [row])
  with pytest.raises(UserError, match=f'row 1: {message}'):
    read(tmp_path / 'rows.jsonl')


@pytest.fixture
def section(shared):
  """The section `mt_bench` of a config, of small files and the published prompts."""
  folder = shared / 'field' / 'judges'
  return {
    'questions': str(folder / 'mt_q.jsonl'),
    'references': str(folder / 'mt_ref.jsonl'),
    'judge_prompts': str(shared / 'data/mt_bench/judge_prompts.jsonl.gz'),
    'mode': 'single',
    'reading': 'last',
  }


@pytest.mark.parametrize(
  ('setting', 'name', 'message'),
  [
    ('questions', 'mt_q_dup.jsonl', r'mt_q_dup\.jsonl, row 2: question_id 1 is that of row 1'),
    ('questions', 'mt_q_3turn.jsonl', r"mt_q_3turn\.jsonl, row 1: field 'turns' has 3 turns"),
    ('references', 'mt_ref_short.jsonl', r"mt_ref_short\.jsonl' has 1 of 2 answers to question 2"),
    ('references', 'mt_ref_missing.jsonl', r"missing\.jsonl' has 0 of 1 answers to question 3"),
  ],
)
@pytest.mark.parametrize('mode', ['single', 'pair'])
def test_field_files_are_refused_before_anyone_answers(section, mode, setting, name, message):
  mt_bench.make(section | {'mode': mode}).prepare()
  path = str(mt_bench.Path(section[setting]).with_name(name))
  with pytest.raises(UserError, match=message):
    mt_bench.make(section | {'mode': mode, setting: path}).prepare()


def test_other_settings_are_refused(section):
  with pytest.raises(UserError, match=r"reading='first' must be last or fastchat"):
    mt_bench.make(section | {'reading': 'first'})


def test_output_format_is_checked_before_anyone_answers():
  odd = {**PROMPTS, 'single-math-v1': {**PROMPTS['single-math-v1'], 'output_format': '[[A]]'}}
  with pytest.raises(
    UserError, match=r"'single-math-v1' has output_format '\[\[A\]\]'; it must be"
  ):
    mt_bench_judge.check_materials(MATERIALS._replace(prompts=odd), 'single')


def run_benchmark(answers, folder, **changes):
  """The tables of two policies in pair mode, judged by a model with these answers."""
  policies = {name: EvaluatedPolicy(name, respond=lambda *_: []) for name in ('one', 'two')}
  for name in policies:
    rows = list(make_answers(name).values())
    mt_bench_scores.write(mt_bench.answer_path(folder, name), rows)
  judges = Judges(chat=lambda sheets, usable: answers(len(sheets)), chat_name='../o/\x1bj\0')
  return mt_bench.run(MATERIALS._replace(**changes), 'pair', policies, judges, folder)


def test_last_failure_is_told(tmp_path):
  failed = Failure('status_400', 'HTTP 400 - too long, [[A]]')
  with pytest.raises(UserError, match=r'no verdict .*HTTP 400 - too long, \[\[A\]\]'):
    run_benchmark(lambda count: [failed] * count, tmp_path)
  (table,) = run_benchmark(lambda count: [Answer('[[A]]')] * 2 + [failed] * (count - 2), tmp_path)
  assert table.note.endswith("The last of them: '$ERROR$ HTTP 400 - too long, [[A]]'.")
  assert '\x1b' not in table.title
  (file,) = (tmp_path / 'mt_bench' / 'model_judgment').iterdir()
  assert file.name == '..__o___j__pair.jsonl'


def test_fastchat_reading_is_named_in_the_title(tmp_path):
  texts = lambda count: [Answer('[[B]] no, [[A]]')] * count
  (table,) = run_benchmark(texts, tmp_path, readers=FIRST_MATCH)
  assert 'read as FastChat does' in table.title


def test_judgement_of_unknown_question_is_refused():
  with pytest.raises(UserError, match='row 1 of the judgements is of question 7'):
    mt_bench_scores.summarise([{'question_id': 7, 'model': 'm', 'score': 5, 'turn': 1}], QUESTIONS)


def test_radar_has_a_line_per_policy():
  scores = {
    'a$b': {'math': 3.0, 'writing': 9.0, 'art': 4.0},
    'c': {'math': 1, 'writing': 2, 'art': 3},
  }
  figure = radar.draw(scores, 'Scores')
  assert isinstance(figure, Figure)
  (axes,) = figure.axes
  assert [label.get_text() for label in axes.get_xticklabels()] == ['writing', 'math', 'art']
  assert [line.get_ydata().tolist() for line in axes.lines] == [[9, 3, 4, 9], [2, 1, 3, 2]]
  assert game_plots.render_png(figure).startswith(b'\x89PNG')


@pytest.mark.parametrize('other', [{'math': 1.0}, {'math': 1.0, 'art': 2.0, 'coding': 1.0}])
def test_radar_of_different_categories_is_refused(other):
  with pytest.raises(UserError, match=r'has scores in .* the same for all policies'):
    radar.draw({'a': {'math': 3.0, 'writing': 9.0, 'art': 4.0}, 'b': other}, 'Scores')
