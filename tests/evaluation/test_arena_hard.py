"""Arena-Hard: small files in the published layout, verdicts, figures, a made-up judge."""

import copy

import numpy as np
import pytest

from nlhf_jax import command
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks import arena_hard
from nlhf_jax.evaluation.benchmarks import arena_hard_scores as scores
from nlhf_jax.evaluation.benchmarks.benchmark import EvaluatedPolicy, Judges
from nlhf_jax.judges.response_body import Failure
from nlhf_jax.judges.verdicts import Answer
from nlhf_jax.storage import json_files

QUESTIONS = [
  {'uid': 'a1', 'category': 'hard_prompt', 'subcategory': 'coding', 'prompt': 'Sort a list.'},
  {'uid': 'b2', 'category': 'hard_prompt', 'subcategory': 'math', 'prompt': '1 + 1?'},
  {'uid': 'c3', 'category': 'creative_writing', 'subcategory': '', 'prompt': 'A poem {x}.'},
]
PROMPT = {
  'name': 'default',
  'system_prompt': 'Judge.',
  'prompt_template': '{QUESTION} | {ANSWER_A} | {ANSWER_B}',
  'output_format': '[[A>>B]]',
}
EMPTY = dict(questions='', baselines='', judge_prompts='', judgments='')


def make_answers(model):
  return [
    {
      'uid': row['uid'],
      'ans_id': 'x',
      'model': model,
      'messages': [
        {'role': 'user', 'content': row['prompt']},
        {'role': 'assistant', 'content': {'answer': f'{model} {row["uid"]}'}},
      ],
      'tstamp': 1.5,
      'metadata': {'token_len': 3},
    }
    for row in QUESTIONS
  ]


def make_judgement(uid, first, second, model='m', category='hard_prompt'):
  """A row with the verdicts of both games."""
  game = lambda score: {'score': score, 'judgment': {'answer': f'[[{score}]]'}, 'prompt': []}
  games = [game(first), game(second)]
  names = {'judge': 'gpt', 'model': model, 'baseline': 'base'}
  return {'uid': uid, 'category': category, **names, 'games': games}


@pytest.fixture
def section(tmp_path):
  """The section of the config, with all files but published judgements."""
  rows = {'question': QUESTIONS, 'base': make_answers('base'), 'prompts': [PROMPT]}
  for name, content in rows.items():
    json_files.write_lines(tmp_path / f'{name}.jsonl', content)
  names = {'questions': 'question', 'baselines': 'base', 'judge_prompts': 'prompts'}
  return EMPTY | {field: str(tmp_path / f'{name}.jsonl') for field, name in names.items()}


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('My final verdict is tie: [[A=B]].', 'A=B'),
    ('First [[A>B]], but then [[B>>A]]', 'B>>A'),
    ('[A>>B]', 'A>>B'),
    ('[B>A] and then [[A>B]], [B>A]', 'A>B'),
    ('[[a>b]]', 'A>B'),
    ('<think>[[A>B]]</think> [[B>A]]', 'B>A'),
    ('<think>[[A>B]]', None),
    ('[[A]]', None),
    ('[[C]] none', None),
    ('', None),
  ],
)
def test_verdicts_are_read_as_published(text, expected):
  assert scores.read_verdict(text) == expected


def test_figures_count_clear_wins_three_times():
  rows = [
    make_judgement('a1', 'B>>A', 'A>B'),  # the model wins 3 and 1
    make_judgement('b2', 'A=B', 'B>A'),  # a tie, and a loss
    make_judgement('c3', None, 'A>>B'),  # the published program drops both games
    make_judgement('d4', 'A<<B', 'B<A'),  # 3 and 1 again, in other words
    make_judgement('a1', 'A>>B', 'B>>A', 'worse'),
  ]
  rows.append({**make_judgement('e5', 'A>B', 'A>B'), 'games': [None, {'score': 'A>B'}]})
  board = scores.leaderboard(rows, seed=0)
  assert list(board) == ['m', 'worse']
  assert board['m']['score'] == pytest.approx(100 * 8.5 / 10)
  assert (board['m']['judged'], board['m']['failed']) == (3, 2)
  assert board['worse'] | {'failed': 0} == dict(score=0, low=0, high=0, judged=1, failed=0)
  assert board['m']['low'] < 85 < board['m']['high']


def test_intervals_are_those_of_battles():
  rows = [
    make_judgement(str(n), *(('B>A', 'A>B') if n % 4 else ('A>B', 'B>A'))) for n in range(400)
  ]
  figures = scores.leaderboard(rows, seed=0)['m']
  half = 100 * 1.645 * np.sqrt(0.75 * 0.25 / 800)
  assert figures['score'] == 75
  assert figures['high'] - figures['score'] == pytest.approx(half, rel=0.25)
  assert figures['score'] - figures['low'] == pytest.approx(half, rel=0.25)


def test_policies_are_compared_with_their_baselines(section, tmp_path):
  seen = []

  def judge(sheets, usable):
    seen.extend(sheets)
    # The model wins in both orders; one answer has no verdict, and one request fails.
    texts = ['[[B>A]]', '[[A>>B]]', 'none', '[[A>B]]', '[[B>>A]]']
    answers = [Answer(text) for text in texts]
    assert [usable(n, answer) for n, answer in enumerate(answers)] == [
      True,
      True,
      False,
      True,
      True,
    ]
    return [*answers, Failure('timeout', 'too late')]

  own = EvaluatedPolicy('mine', lambda turns, temperature, seed: [t[-1]['content'] for t in turns])
  json_files.write_lines(tmp_path / 'old.jsonl', [make_judgement('a1', 'A>B', 'A=B', 'old')])
  benchmark = arena_hard.make(section | {'judgments': str(tmp_path / 'old.jsonl')})
  benchmark.answer(own, tmp_path)
  tables = benchmark.run({'mine': own}, Judges(chat=judge, chat_name='org/judge'), tmp_path)
  assert seen[0] == ('Judge.', 'Sort a list. | base a1 | Sort a list.')
  assert seen[1] == ('Judge.', 'Sort a list. | Sort a list. | base a1')
  assert seen[4][1] == 'A poem {x}. | base c3 | A poem {x}.'
  assert [table.title for table in tables] == [
    'Arena-Hard, hard_prompt, judged by gpt',
    'Arena-Hard, hard_prompt, judged by org/judge',
    'Arena-Hard, creative_writing, judged by org/judge',
  ]
  assert tables[0].rows == [['old', 25, *tables[0].rows[0][2:4], 1, 0]]
  assert tables[1].rows == [['mine', 100, 100, 100, 1, 1]]
  assert tables[2].rows[0][4:] == [0, 1]
  assert np.isnan(tables[2].rows[0][1])
  folder = tmp_path / 'arena_hard'
  found = scores.read_judgements(folder / 'model_judgment' / 'org__judge' / 'mine.jsonl')
  assert [[game['score'] for game in row['games']] for row in found] == [
    ['B>A', 'A>>B'],
    [None, 'A>B'],
    ['B>>A', None],
  ]
  assert found[0].keys() == make_judgement('', '', '').keys()
  assert scores.read_questions(folder / 'question.jsonl') == QUESTIONS
  name, answers = scores.read_answers(folder / 'model_answer' / 'mine.jsonl')
  assert (name, answers['b2']) == ('mine', '1 + 1?')
  with pytest.raises(UserError, match="they have a model 'old', too"):
    benchmark.answer(own._replace(name='old'), tmp_path)


def test_published_judgements_need_no_policies(tmp_path):
  assert arena_hard.make(EMPTY) is None
  for model in 'mn':
    rows = [make_judgement('a1', 'A>B', 'A>B', model)]
    json_files.write_lines(tmp_path / 'judge' / f'{model}.jsonl', rows)
  benchmark = arena_hard.make(EMPTY | {'judgments': str(tmp_path)})
  assert (benchmark.needs_policies, benchmark.needs_chat_judge) == (False, False)
  (table,) = benchmark.run({}, Judges(), tmp_path)
  assert [row[:2] for row in table.rows] == [['m', 50], ['n', 50]]
  assert 'Win rate over base' in table.note


def test_each_category_may_have_its_baseline(section, tmp_path):
  json_files.write_lines(tmp_path / 'other.jsonl', make_answers('other'))
  text = f'creative_writing={tmp_path}/other.jsonl, hard_prompt={section["baselines"]}'
  found = arena_hard.read_baselines(text, ['hard_prompt', 'creative_writing'], QUESTIONS)
  assert {name: model for name, (model, _) in found.items()} == {
    'hard_prompt': 'base',
    'creative_writing': 'other',
  }


BROKEN = {
  'questions': [
    (lambda rows: rows.append(rows[0]), r"row 4: uid 'a1' is that of row 1"),
    (lambda rows: rows[1].pop('uid'), r"row 2: field 'uid' is missing"),
    (lambda rows: rows[1].update(prompt=None), r"row 2: field 'prompt' is None"),
    (
      lambda rows: rows.insert(0, {'question_id': 'a', 'turns': []}),
      'row 1: it has the layout of before April 2025',
    ),
    (lambda rows: rows[2].update(category='new'), None),
  ],
  'baselines': [
    (lambda rows: rows.pop(), "there is no answer to the question 'c3'"),
    (lambda rows: rows[1].update(model='b'), "row 2: field 'model' is 'b' after 'base'"),
    (lambda rows: rows[1].update(messages=[]), "row 2: field 'messages' must end with"),
    (lambda rows: rows[1]['messages'].pop(), "row 2: field 'messages' must end with"),
    (lambda rows: rows.append(rows[0]), "row 4: uid 'a1' was answered before"),
  ],
  'judge_prompts': [
    (lambda rows: rows[0].update(name='math'), "there is no prompt 'hard_prompt' and none named"),
    (lambda rows: rows[0].update(prompt_template='{question}'), r"has the fields \['question'\]"),
  ],
  'judgments': [
    (lambda rows: rows[0]['games'].pop(), "row 1: field 'games' has 1 games"),
    (lambda rows: rows[0]['games'][0].update(score='A'), "row 1: a game's score is 'A'"),
    (lambda rows: rows[0]['games'][1].update(score=['A']), "row 1: a game's score is"),
    (lambda rows: rows[0]['games'].__setitem__(0, 'x'), "row 1: a game's score is ''"),
    (lambda rows: rows.append(rows[0]), 'row 2: the question of row 1 is judged again'),
    (lambda rows: rows[0].pop('baseline'), "row 1: field 'baseline' is missing"),
  ],
}


@pytest.mark.parametrize(
  ('field', 'damage', 'message'),
  [(field, *case) for field, cases in BROKEN.items() for case in cases],
)
def test_malformed_files_are_explained(field, damage, message, section, tmp_path):
  good = {'questions': QUESTIONS, 'baselines': make_answers('base'), 'judge_prompts': [PROMPT]}
  rows = copy.deepcopy(good.get(field, [make_judgement('a1', 'A>B', 'A>B')]))
  damage(rows)
  json_files.write_lines(tmp_path / 'broken.jsonl', rows)
  section |= {field: str(tmp_path / 'broken.jsonl')}
  if message is None:
    assert arena_hard.make(section)
    return
  with pytest.raises(UserError, match=message) as error:
    arena_hard.make(section)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'baselines': ''}, 'config.arena_hard.baselines is empty'),
    ({'judge_prompts': ''}, 'config.arena_hard.judge_prompts is empty'),
    ({'baselines': 'hard_prompt=base.jsonl'}, "the category 'creative_writing' has none"),
    ({'baselines': 'cooking=base.jsonl'}, 'must be one file, or CATEGORY=FILE'),
    ({'judgments': 'empty'}, "'empty' has no file"),
  ],
)
def test_settings_are_explained(changes, message, section, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match=message):
    arena_hard.make(section | changes)


def test_section_of_the_config_is_complete():
  assert command.load_config('evaluate').arena_hard.to_dict() == EMPTY
