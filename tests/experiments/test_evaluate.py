"""Policies of whatever origin compared, from a config to files, tables and a page."""

import csv
import importlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from nlhf_jax.data import tokenizers
from nlhf_jax.errors import Interrupted, UserError
from nlhf_jax.evaluation.benchmarks import alpaca_eval, mt_bench_scores
from nlhf_jax.experiments import export_policy
from nlhf_jax.experiments import judge_config as judges_build
from nlhf_jax.experiments.evaluate import config as evaluate_build
from nlhf_jax.experiments.evaluate import run as evaluate
from nlhf_jax.experiments.evaluate.config import make_experiment
from nlhf_jax.experiments.language import run as language
from nlhf_jax.judges import pairrm
from nlhf_jax.storage import json_files, json_lines
from nlhf_jax.structs import Comparison
from nlhf_jax.tasks.summaries import generator, styles
from tests.experiments import pretrained
from tests.judges import faults

ROOT = Path(__file__).parents[2]
PLAYERS = ['reporter', 'lister', 'asker']  # of the embedded task's three styles


@pytest.fixture
def config_of(toy, monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT))

  def config_of(*source, **changed):
    config = toy(importlib.import_module('configs.evaluate').get_config(*source))
    config.tournament.update(prompts=1_024, length=6, batch=8)
    config.update(changed)
    return config

  return config_of


def run(config, workdir, stages=None):
  """The results, read back from where they are left."""
  evaluate.start(config, 'evaluate', workdir, stages or workdir / 'stages')
  return json.loads((workdir / 'results.json').read_text())


def styled(folder, count):
  """Players of pure styles, as a `samples.jsonl`: its path, and the posts that they summarise."""
  posts = [record.prompt for record in itertools.islice(generator.examples(7), count)]
  rows = [
    {'prompt': post, 'responses': dict(zip(PLAYERS, styles.perfect_summaries(post), strict=True))}
    for post in posts
  ]
  json_lines.write(folder / 'samples.jsonl', rows)
  return str(folder / 'samples.jsonl'), posts


def test_files_are_ranked_and_the_cycle_of_the_raters_is_shown(config_of, tmp_path, capsys):
  path, posts = styled(tmp_path, 40)
  results = run(config_of('synthetic', players=path, judges=''), tmp_path / 'run')
  table = results['tables']['oracle']
  assert results['policies'] == PLAYERS
  # Two raters of three for the first of each: report over list over question over report.
  rate = np.array(table['win_rate'])
  assert rate[0, 1] == rate[1, 2] == rate[2, 0] > 0.6
  assert results['cycles']['oracle']['count'] == 1
  assert results['cycles']['oracle']['first'][0]['policies'] == PLAYERS
  for row in results['ranking']['oracle']:
    assert row['lottery'] == pytest.approx(1 / 3)
    assert row['borda'] == pytest.approx(0.5)
    assert row['bradley_terry'] == pytest.approx(0, abs=1e-3)
  assert results['orders']['oracle'] == {'consistency': 1, 'first_place': pytest.approx(0)}
  assert table['pairs'] == {'count': 3, 'alone': 3, 'together': 3}
  rows = json_lines.read(next((tmp_path / 'run' / 'judgements').iterdir()))
  assert len(rows) == 40 * 6
  outputs = json.loads((tmp_path / 'run/players/lister/model_outputs.json').read_text())
  assert [row['instruction'] for row in outputs] == posts
  page = (tmp_path / 'run' / 'report.html').read_text()
  assert posts[0] in page
  said = capsys.readouterr().out
  assert 'a cycle: reporter > lister > asker > reporter' in said


def test_what_was_judged_is_not_judged_again(config_of, tmp_path, monkeypatch):
  path, _ = styled(tmp_path, 12)
  config = config_of('synthetic', players=path, judges='')
  before = run(config, tmp_path / 'run')
  monkeypatch.setattr(generator, 'preference', lambda *asked: pytest.fail('asked again'))
  assert run(config, tmp_path / 'run') == before
  config.tournament.settle = 0.2  # and looking at it in another way asks nothing either
  assert run(config, tmp_path / 'run')['settled']['level'] == 0.2


def test_a_tournament_stops_once_it_is_settled(config_of, tmp_path, monkeypatch):
  rows = [{'prompt': f'p{n}', 'responses': {'good': 'good', 'bad': 'bad'}} for n in range(200)]
  json_lines.write(tmp_path / 'two.jsonl', rows)
  clear = lambda prompts, left, right: np.where([text == 'good' for text in left], 0.9, 0.1)
  monkeypatch.setattr(generator, 'preference', clear)
  config = config_of('synthetic', players=str(tmp_path / 'two.jsonl'), judges='')
  config.tournament.settle = 0.05
  results = run(config, tmp_path / 'run')
  assert results['settled']['all']
  assert results['comparisons'] < 100
  assert results['comparisons'] % 8 == 0
  table = results['tables']['oracle']
  assert 0.5 < table['low'][0][1] < 0.9 < table['high'][0][1]
  even = lambda prompts, left, right: np.full(len(left), 0.5)
  monkeypatch.setattr(generator, 'preference', even)
  results = run(config, tmp_path / 'other')
  assert not results['settled']['all']
  assert results['comparisons'] == 200


def test_a_run_its_export_and_a_file_play_under_a_trained_judge(
  config_of, tmp_path, toy_run, monkeypatch
):
  of_run, folder = toy_run.copy_to(tmp_path / 'theirs')
  stages, workdir = folder / 'stages', folder / 'run'
  experiment = language.make_experiment(of_run, 'theirs', stages)
  export_policy.write_policy(
    experiment, export_policy.load_entry(experiment, 'sft'), tmp_path / 'out', merged=False
  )
  prompts = [line['prompt'] for line in json_lines.read(workdir / 'samples.jsonl')]
  theirs = [{'prompt': prompt, 'response': 'in short, no'} for prompt in prompts[:6]]
  json_lines.write(tmp_path / 'theirs.jsonl', theirs)
  players = f'{workdir}:sft,exported={tmp_path}/out,{tmp_path}/theirs.jsonl'
  config = config_of('synthetic', players=players, judges='learned')
  config.data.update(of_run.data)
  config.prompts.path = str(workdir / 'samples.jsonl')
  config.tournament.filters.top_k = 1
  results = run(config, tmp_path / 'run', stages)
  assert results['policies'] == ['sft', 'exported', 'theirs']
  assert results['comparisons'] == 6
  assert results['tables'].keys() == {'oracle', 'learned'}
  for table in results['tables'].values():
    rate = np.array(table['win_rate'])
    np.testing.assert_allclose(rate + rate.T, 1)
    assert rate[0, 1] == 0.5  # the likeliest tokens of one and the same policy
  assert results['tables']['learned']['win_rate'][0][2] != 0.5
  assert len(list(stages.glob('preference_model-*'))) == 1  # found, and not trained again
  monkeypatch.setattr(evaluate, 'make_model', lambda player: pytest.fail('asked again'))
  assert run(config, tmp_path / 'run', stages) == results


def test_alpaca_eval_s_files_and_figures(config_of, tmp_path, monkeypatch):
  prompts = [f'Say {number}.' for number in range(30)]
  random = np.random.default_rng(0)
  texts = lambda: ['word ' * int(length) for length in random.integers(1, 30, len(prompts))]
  make = lambda name: alpaca_eval.make_outputs(
    [{'instruction': prompt} for prompt in prompts], texts(), name
  )
  reference, mine = make('reference'), make('mine')
  alpaca_eval.write(tmp_path / 'reference.json', reference)
  alpaca_eval.write(tmp_path / 'mine.json', mine)
  judged = alpaca_eval.annotate(lambda *asked: random.uniform(size=30), reference, make('old'), 'j')
  alpaca_eval.write(tmp_path / 'old.json', judged)
  (tmp_path / 'difficulty.csv').write_text(
    'index,instruction_difficulty\n' + ''.join(f'{i},{i / 30 - 0.5}\n' for i in range(30))
  )
  (tmp_path / 'anchors.csv').write_text(
    'std_delta_len,instruction_difficulty,preference\n-1,0.1,0.7\n1,0.1,0.3\n'
  )
  longer = lambda prompts, left, right: np.array(
    [0.8 if len(a) > len(b) else 0.3 for a, b in zip(left, right, strict=True)]
  )
  monkeypatch.setattr(generator, 'preference', longer)
  config = config_of('synthetic', judges='')
  config.players = f'{tmp_path}/mine.json,{tmp_path}/old.json'
  config.alpaca_eval.update(
    reference=str(tmp_path / 'reference.json'),
    difficulty=str(tmp_path / 'difficulty.csv'),
    anchors=str(tmp_path / 'anchors.csv'),
  )
  results = run(config, tmp_path / 'run')
  titles = [table['title'] for table in results['benchmarks']]
  assert titles == [
    f'AlpacaEval 2.0 against reference, {judge} judge' for judge in ('oracle', 'published')
  ]
  annotations = alpaca_eval.read_annotations(tmp_path / 'run/players/mine/oracle/annotations.json')
  figures = alpaca_eval.summarise(annotations)
  board = {
    judge: {
      row['']: row for row in csv.DictReader((tmp_path / 'run' / f'leaderboard_{judge}.csv').open())
    }
    for judge in ('oracle', 'published')
  }
  assert float(board['oracle']['mine']['win_rate']) == pytest.approx(figures['win_rate'])
  assert figures['n_total'] == 30
  published = alpaca_eval.summarise(judged)
  assert float(board['published']['old']['win_rate']) == pytest.approx(published['win_rate'])
  assert list(board['published']) == ['old']
  assert 0 < float(board['oracle']['mine']['length_controlled_winrate']) < 100


def test_published_judgements_have_the_leaderboard_s_figures(config_of, tmp_path, shared):
  folder, names = shared / 'data' / 'alpaca_eval', ('alpaca-7b', 'gpt-3.5-turbo-1106')
  expected = json.loads((folder / 'expected.json').read_text())
  config = config_of(
    players=','.join(f'{n}={folder}/models/{n}.jsonl.gz' for n in names), judges=''
  )
  config.alpaca_eval.update(
    reference=str(folder / 'baseline_gpt4_1106_preview.jsonl.gz'),
    difficulty=str(folder / 'instruction_difficulty_recovered.csv'),
    anchors=str(folder / 'gamed_baselines_stand_in.csv'),
  )
  results = run(config, tmp_path / 'run')
  assert results['tables'] == {}  # nobody judges
  (table,) = results['benchmarks']
  assert [row[0] for row in table['rows']] == list(names[::-1])  # the better one first
  for name, *values in table['rows']:
    row, published = dict(zip(table['columns'], values, strict=True)), expected[name]['published']
    assert row['n_total'] == published['n_total']
    assert row['win_rate'] == pytest.approx(published['win_rate'], abs=1e-9)
    lengths_apart = row['length_controlled_winrate'] - published['length_controlled_winrate']
    assert abs(lengths_apart) < 0.2


def test_mt_bench_s_files(config_of, tmp_path, monkeypatch):
  """Alone, without a tournament: answers are graded and then compared; they are given once."""
  monkeypatch.setenv('KEY', 'secret')
  pretrained.save(tmp_path / 'llama')
  categories = ('math', 'reasoning', 'coding')  # all are answered with the likeliest tokens
  questions = [
    {'question_id': 81 + i, 'category': category, 'turns': ['tell red', 'say blue']}
    for i, category in enumerate(categories)
  ]
  references = [
    {'question_id': 81 + i, 'choices': [{'index': 0, 'turns': ['a', 'b']}]} for i in range(3)
  ]
  sides = {'single': ['answer'], 'pair': ['answer_a', 'answer_b']}
  prompts = [
    {
      'name': f'{mode}-math-v1{"-multi-turn" * (turn == 2)}',
      'system_prompt': 'Judge.',
      'prompt_template': ' '.join(
        f'{{{side}{"_2" * (turn == 2)}}}' for side in ('question', *sides[mode])
      ),
      'output_format': {'single': '[[rating]]', 'pair': '[[A]]'}[mode],
    }
    for mode in sides
    for turn in (1, 2)
  ]
  rows = {'question': questions, 'references': references, 'judge_prompts': prompts}
  for name, of_file in rows.items():
    json_files.write_lines(tmp_path / f'{name}.jsonl', of_file)
  config = config_of('synthetic', players=f'one={tmp_path}/llama,two={tmp_path}/llama', judges='')
  config.tournament.filters.top_k = 1
  config.mt_bench.update(
    questions=str(tmp_path / 'question.jsonl'),
    references=str(tmp_path / 'references.jsonl'),
    judge_prompts=str(tmp_path / 'judge_prompts.jsonl'),
  )
  folder = tmp_path / 'run' / 'mt_bench'
  said = ['[[A]] [[7.5]]']  # whoever is shown first wins; a grade is in the same words
  with faults.serve(lambda content, before: faults.Reply(faults.said(said[0]))) as served:
    config.remote.update(url=served.url, model='judge', key='KEY', request='{"max_tokens": 70}')
    results = run(config, tmp_path / 'run')
    (table,) = results['benchmarks']
    assert results['policies'] == ['one', 'two']
    assert 'tables' not in results
    assert table['columns'] == ['average', 'turn 1', 'turn 2', *sorted(categories), 'failed']
    assert table['rows'] == [['one', *[7.5] * 6, 0], ['two', *[7.5] * 6, 0]]
    graded = mt_bench_scores.read_scores(folder / 'model_judgment' / 'judge_single.jsonl')
    assert [row['score'] for row in graded] == [7.5] * 12
    assert {(one.body['max_tokens'], one.body['temperature']) for one in served.seen} == {(70, 0)}
    account = {'requests': 12, 'asked': 12, 'prompt_tokens': 1200, 'response_tokens': 24}
    assert results['outside']['remote']['counts'] == account
    assert (folder / 'radar.png').stat().st_size > 10_000
    answers = mt_bench_scores.read_answers(folder / 'model_answer' / 'two.jsonl')
    assert all(len(row['choices'][0]['turns']) == 2 for row in answers.values())
    monkeypatch.setattr(evaluate, 'make_model', lambda player: pytest.fail('asked again'))
    asked = len(served.seen)
    assert run(config, tmp_path / 'run')['benchmarks'] == [table]
    assert len(served.seen) == asked  # its answers are kept, too
    assert json.loads((tmp_path / 'run/remote.json').read_text())['counts'] == {
      **account,
      'kept': 12,
    }
    config.mt_bench.mode = 'pair'
    (table,) = run(config, tmp_path / 'run')['benchmarks']
    said[0], config.remote.request = 'hm', '{"max_tokens": 71}'
    with pytest.raises(UserError, match='no verdict that can be read'):
      run(config, tmp_path / 'run')
  even = [0, 6, 0, 0.5, 0]
  assert {name: row for name, *row in table['rows']} == {'one': even, 'two': even}
  mt_bench_scores.read_pairs(folder / 'model_judgment' / 'judge_pair.jsonl')


def test_what_alignment_costs_on_tasks_of_the_harness(config_of, tmp_path, monkeypatch):
  """Alone, without a tournament; a task that is finished is kept, whatever becomes of the next."""
  pytest.importorskip('lm_eval', reason='the extra `harness` is not installed')
  from nlhf_jax.evaluation.benchmarks import lm_tasks

  pretrained.save(tmp_path / 'llama')
  docs = [{'question': f'tell {n}', 'choices': ['red', 'blue'], 'gold': n % 2} for n in range(4)]
  json_files.write_lines(tmp_path / 'docs.jsonl', docs)
  paths = [tmp_path / f'{name}.yaml' for name in ('colours', 'tones')]
  for path in paths:
    task = {
      'task': path.stem,
      'dataset_path': 'json',
      'dataset_kwargs': {'data_files': {'test': str(tmp_path / 'docs.jsonl')}},
      'test_split': 'test',
      'output_type': 'multiple_choice',
      'doc_to_text': '{{question}}',
      'doc_to_choice': '{{choices}}',
      'doc_to_target': 'gold',
    }
    path.write_text(json.dumps(task))  # JSON is YAML, too
  config = config_of('synthetic', players=f'one={tmp_path}/llama,two={tmp_path}/llama', judges='')
  config.harness.tasks = ','.join(map(str, paths))
  own, ran = lm_tasks.evaluate, []

  def evaluate_piece(policy, manager, piece, limit):
    if len(ran) == 1:
      ran.append('cut')
      raise Interrupted('here')
    ran.append(Path(piece.name).stem)
    return own(policy, manager, piece, limit)

  monkeypatch.setattr(lm_tasks, 'evaluate', evaluate_piece)
  with pytest.raises(Interrupted):
    run(config, tmp_path / 'run')
  results = run(config, tmp_path / 'run')
  assert ran == ['colours', 'cut', 'tones', 'colours', 'tones']  # of one, and of two
  (table,) = results['benchmarks']
  assert table['title'] == 'Alignment tax, two after one'
  assert [row[0] for row in table['rows'][::2]] == ['colours', 'tones']
  assert all(row[4] == 0 for row in table['rows'])
  assert results['policies'] == ['one', 'two']
  assert not (tmp_path / 'run/players').exists()
  assert run(config, tmp_path / 'run') == results
  assert len(ran) == 5
  json_files.write_lines(tmp_path / 'docs.jsonl', docs[:3])
  run(config, tmp_path / 'run')
  assert len(ran) == 9


def test_what_a_player_cannot_respond_to_is_named(config_of, tmp_path):
  pretrained.save(tmp_path / 'llama')
  asked = [{'prompt': 'tell red'}, {'prompt': 'tell blue ' * 300}, {'prompt': 'say'}]
  json_lines.write(tmp_path / 'prompts.jsonl', asked)
  config = config_of('synthetic', players=f'mine={tmp_path}/llama', judges='')
  config.prompts.path = str(tmp_path / 'prompts.jsonl')
  with pytest.raises(UserError, match=r"the player 'mine': a conversation of .*'.*tell blue '"):
    run(config, tmp_path / 'run')
  assert not list((tmp_path / 'run').rglob('said.jsonl'))  # the longest came first


def test_prompts_that_a_file_lacks_are_told(config_of, tmp_path, capsys):
  rows = [{'prompt': word, 'response': 'x'} for word in ('first', 'second', 'third')]
  json_lines.write(tmp_path / 'whole.jsonl', rows)
  json_lines.write(tmp_path / 'part.jsonl', rows[::2])
  config = config_of(players=f'{tmp_path}/whole.jsonl,{tmp_path}/part.jsonl')
  assert make_experiment(config, 'evaluate', tmp_path).prompts == ['first', 'third']
  said = "2 prompts have a response in every file, and are used; 'part' has no response to 1 of 3, "
  assert f"{said}as 'second'" in capsys.readouterr().out


def test_pairrm_goes_by_one_mean_of_both_orders_in_training_too(config_of, tmp_path, monkeypatch):
  """That of the logits: of probabilities it would be another one."""
  there, back = 3.0, -0.5  # logits of the left one over the right one, and the other way round
  score = lambda prompts, left, right: np.array(
    [there if (one, other) == ('x', 'y') else back for one, other in zip(left, right, strict=True)],
    np.float32,
  )
  monkeypatch.setitem(
    evaluate_build.GIVEN,
    'pairrm',
    judges_build.Given(
      lambda config, folder: judges_build.ExternalJudge(
        'a ranker', pairrm.make_preference(score), pairrm.combine_orders, None
      ),
      lambda config: 'a ranker',
    ),
  )
  json_lines.write(
    tmp_path / 'two.jsonl', [{'prompt': 'a', 'responses': {'one': 'x', 'other': 'y'}}]
  )
  config = config_of(players=f'{tmp_path}/two.jsonl', judges='pairrm')
  table = run(config, tmp_path / 'run')['tables']['pairrm']['win_rate']
  expected = 1 / (1 + np.exp(-(there - back) / 2))
  assert table[0][1] == pytest.approx(expected, abs=1e-6)
  assert table[0][1] + table[1][0] == 1
  tokenizer = tokenizers.train(['a x y'], 260)
  prompts = tokenizers.pad_prompts(tokenizer, tokenizers.prompt_ids(tokenizer, ['a']), 8)
  x, y = (
    tokenizers.pad_responses(tokenizer, tokenizers.response_ids(tokenizer, [text]), 8)
    for text in 'xy'
  )
  trained_on = pairrm.make_judge(score, tokenizer)(Comparison(prompts, x, y))
  assert trained_on[0, 0, 0] + 0.5 == pytest.approx(table[0][1], abs=1e-6)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({}, 'config.players is empty'),
    ({'players': 'a=two.jsonl,a=two.jsonl'}, "two are called 'a_good'"),
    ({'players': 'nowhere'}, "config.players='nowhere' is no folder"),
    ({'players': 'missing.json'}, "there is no file 'missing.json'"),
    ({'players': 'damaged:sft'}, "'damaged/config.json' is damaged"),
    ({'players': 'old:sft'}, "'old/config.json' is of another version"),
    ({'players': 'other.jsonl', 'tournament.settle': 0.1}, 'needs two players'),
    ({'players': 'two.jsonl,other.jsonl'}, "'other' has no response to 1 of 1, as 'a'"),
    ({'players': 'toothless'}, "config.players='toothless' holds no tokenizer"),
    ({'players': 'mute'}, 'config.prompts.path is empty'),
    ({'players': 'two.jsonl', 'judges': 'nobody'}, "config.judges='nobody' must be some of"),
    ({'players': 'two.jsonl', 'tournament.settle': 1.0}, 'config.tournament.settle=1.0'),
    ({'players': 'two.jsonl', 'mt_bench.questions': 'q', 'mt_bench.mode': 'x'}, 'single or pair'),
    ({'players': 'two.jsonl', 'mt_bench.questions': 'q'}, 'files of responses cannot'),
    ({'players': 'two.jsonl', 'harness.tasks': 'openllm'}, 'files of responses cannot'),
    ({'players': 'two.jsonl', 'prompts.path': 'talk.jsonl'}, 'a prompt is a conversation'),
  ],
)
def test_mistakes_are_told_in_a_sentence(changes, said, config_of, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  json_lines.write(Path('two.jsonl'), [{'prompt': 'a', 'responses': {'good': 'x', 'bad': 'y'}}])
  json_lines.write(Path('other.jsonl'), [{'prompt': 'b', 'response': 'x'}])
  talk = [{'role': role, 'content': 'hm'} for role in ('user', 'assistant', 'user')]
  json_lines.write(Path('talk.jsonl'), [{'prompt': talk}])
  for folder in ('toothless', 'mute'):
    pretrained.save(Path(folder))
  Path('toothless/tokenizer.json').unlink()
  for folder, content in (('damaged', '{'), ('old', '{"experiment": "language", "sft": {}}')):
    Path(folder).mkdir()
    Path(folder, 'config.json').write_text(content)
  config = config_of('synthetic', judges='')
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=said):
    make_experiment(config, 'evaluate', tmp_path)
