"""Benchmarks within an evaluation: their files, tables and caches."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from nlhf_jax.errors import Interrupted, UserError
from nlhf_jax.evaluation.benchmarks import alpaca_eval, annotation_files, mt_bench_scores
from nlhf_jax.evaluation.benchmarks.benchmark_registry import BENCHMARKS, make_benchmarks
from nlhf_jax.experiments import data_config
from nlhf_jax.experiments.evaluate import cached_responses
from nlhf_jax.experiments.evaluate.config import make_experiment
from nlhf_jax.storage import json_files, json_lines
from tests.experiments import evaluations, pretrained
from tests.experiments.evaluations import run
from tests.judges import faults


@pytest.fixture
def config_of(toy):
  """A function that makes a toy config of an evaluation."""
  return lambda *source, **changed: evaluations.make_config(toy, *source, **changed)


def test_alpaca_eval_writes_files_and_leaderboards(config_of, tmp_path, monkeypatch):
  prompts = [f'Say {number}.' for number in range(30)]
  random = np.random.default_rng(0)
  texts = lambda: ['word ' * int(length) for length in random.integers(1, 30, len(prompts))]
  make = lambda name: alpaca_eval.make_outputs(
    [{'instruction': prompt} for prompt in prompts], texts(), name
  )
  reference, mine = make('reference'), make('mine')
  alpaca_eval.write(tmp_path / 'reference.json', reference)
  alpaca_eval.write(tmp_path / 'mine.json', mine)
  judged = alpaca_eval.annotate(lambda *texts: random.uniform(size=30), reference, make('old'), 'j')
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
  monkeypatch.setitem(data_config.ORACLES, 'synthetic', longer)
  config = config_of('synthetic', judges='')
  config.entries = f'{tmp_path}/mine.json,{tmp_path}/old.json'
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
  annotations = annotation_files.read_annotations(
    tmp_path / 'run/policies/mine/oracle/annotations.json'
  )
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


def test_published_leaderboard_is_reproduced(config_of, tmp_path, shared):
  folder, names = shared / 'data' / 'alpaca_eval', ('alpaca-7b', 'gpt-3.5-turbo-1106')
  expected = json.loads((folder / 'expected.json').read_text())
  config = config_of(
    entries=','.join(f'{n}={folder}/models/{n}.jsonl.gz' for n in names), judges=''
  )
  config.alpaca_eval.update(
    reference=str(folder / 'baseline_gpt4_1106_preview.jsonl.gz'),
    difficulty=str(folder / 'instruction_difficulty_recovered.csv'),
    anchors=str(folder / 'gamed_baselines_stand_in.csv'),
  )
  results = run(config, tmp_path / 'run')
  assert results['tables'] == {}  # there is no judge
  (table,) = results['benchmarks']
  assert [row[0] for row in table['rows']] == list(names[::-1])  # the better one first
  for name, *values in table['rows']:
    row, published = dict(zip(table['columns'], values, strict=True)), expected[name]['published']
    assert row['n_total'] == published['n_total']
    assert row['win_rate'] == pytest.approx(published['win_rate'], abs=1e-9)
    lengths_apart = row['length_controlled_winrate'] - published['length_controlled_winrate']
    assert abs(lengths_apart) < 0.2


def test_mt_bench_runs_alone(config_of, tmp_path, monkeypatch):
  """No tournament runs; answers are generated once, then graded, then compared."""
  monkeypatch.setenv('KEY', 'secret')
  pretrained.save(tmp_path / 'llama')
  categories = ('math', 'reasoning', 'coding')  # with these answers are greedy
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
  config = config_of('synthetic', entries=f'one={tmp_path}/llama,two={tmp_path}/llama', judges='')
  config.tournament.filters.top_k = 1
  config.mt_bench.update(
    questions=str(tmp_path / 'question.jsonl'),
    references=str(tmp_path / 'references.jsonl'),
    judge_prompts=str(tmp_path / 'judge_prompts.jsonl'),
  )
  folder = tmp_path / 'run' / 'mt_bench'
  verdict = ['[[A]] [[7.5]]']  # a verdict for the first answer, and a grade
  with faults.serve(lambda content, before: faults.Reply(faults.completion(verdict[0]))) as served:
    config.remote.update(url=served.url, model='judge', key='KEY', request='{"max_tokens": 70}')
    results = run(config, tmp_path / 'run')
    (table,) = results['benchmarks']
    assert results['policies'] == ['one', 'two']
    assert 'tables' not in results
    assert table['columns'] == ['average', 'turn 1', 'turn 2', *sorted(categories), 'failed']
    assert table['rows'] == [['one', *[7.5] * 6, 0], ['two', *[7.5] * 6, 0]]
    graded = json_files.read(folder / 'model_judgment' / 'judge_single.jsonl')
    assert [row['score'] for row in graded] == [7.5] * 12
    assert {(one.body['max_tokens'], one.body['temperature']) for one in served.seen} == {(70, 0)}
    account = {'requests': 12, 'asked': 12, 'prompt_tokens': 1200, 'response_tokens': 24}
    assert results['external_judges']['remote']['counts'] == account
    assert (folder / 'radar.png').stat().st_size > 10_000
    answers = mt_bench_scores.read_answers(folder / 'model_answer' / 'two.jsonl')
    assert all(len(row['choices'][0]['turns']) == 2 for row in answers.values())
    monkeypatch.setattr(cached_responses, 'make_model', lambda entry: pytest.fail('computed again'))
    asked = len(served.seen)
    assert run(config, tmp_path / 'run')['benchmarks'] == [table]
    assert len(served.seen) == asked  # the judge's responses are cached, too
    assert json.loads((tmp_path / 'run/remote.json').read_text())['counts'] == {
      **account,
      'cached': 12,
    }
    config.mt_bench.mode = 'pair'
    (table,) = run(config, tmp_path / 'run')['benchmarks']
    verdict[0], config.remote.request = 'hm', '{"max_tokens": 71}'
    with pytest.raises(UserError, match='no verdict that can be parsed'):
      run(config, tmp_path / 'run')
  even = [0, 6, 0, 0.5, 0]
  assert {name: row for name, *row in table['rows']} == {'one': even, 'two': even}
  json_files.read(folder / 'model_judgment' / 'judge_pair.jsonl')


def test_harness_reports_the_alignment_tax(config_of, tmp_path, monkeypatch):
  """No tournament runs; a finished task is kept if the next one is interrupted."""
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
  config = config_of('synthetic', entries=f'one={tmp_path}/llama,two={tmp_path}/llama', judges='')
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
  assert not (tmp_path / 'run/policies').exists()
  assert run(config, tmp_path / 'run') == results
  assert len(ran) == 5
  json_files.write_lines(tmp_path / 'docs.jsonl', docs[:3])
  run(config, tmp_path / 'run')
  assert len(ran) == 9


def test_agreement_runs_alone(config_of, tmp_path, shared):
  """Judges are compared with human labels; there are no policies and no tournament."""
  rows = json.loads(gzip.decompress((shared / 'data/pandalm/testset-v1.json.gz').read_bytes()))
  json_files.write_list(tmp_path / 'pandalm.json', rows[:20])
  config = config_of('synthetic', judges='')
  config.agreement.pandalm = str(tmp_path / 'pandalm.json')
  results = run(config, tmp_path / 'run')
  (table,) = results['benchmarks']
  assert results['policies'] == []
  assert 'tables' not in results
  assert table['title'] == 'Agreement with human labels, PandaLM, 20 pairs'
  assert [row[0] for row in table['rows']] == ['oracle', 'people']
  assert 0 <= table['rows'][0][1] <= 1
  (judgements,) = (tmp_path / 'run' / 'judgements').iterdir()
  assert len(json_lines.read(judgements)) <= 40
  assert run(config, tmp_path / 'run') == results


def test_published_verdicts_need_no_judge(config_of, tmp_path):
  row = {'input': 'i', 'output_1': 'a', 'output_2': 'b', 'label': 1}
  row['results'] = [{'swap = False': {'winner': '1'}, 'swap = True': {'winner': '2'}}]
  path = tmp_path / 'Natural' / 'evaluators' / 'ChatGPT' / 'Swap' / 'result.json'
  json_files.write_list(path, [row])
  config = config_of(judges='')
  config.agreement.llmbar = str(path)
  (table,) = run(config, tmp_path / 'run')['benchmarks']
  cells = dict(zip(table['columns'], table['rows'][0][1:], strict=True))
  assert table['rows'][0][0] == 'ChatGPT/Swap'
  assert (cells['as filed'], cells['swapped'], cells['consistency']) == (1, 0, 0)


def test_agreement_needs_judges(config_of, tmp_path, shared):
  config = config_of(judges='')
  config.agreement.autoj = str(shared / 'data/autoj_pairs/pairs_a.jsonl.gz')
  with pytest.raises(UserError, match=r'config\.judges is empty, but config\.agreement'):
    make_experiment(config, 'evaluate', tmp_path)


def test_default_config_requests_no_benchmark(config_of):
  config = config_of()
  assert make_benchmarks({name: config[name].to_dict() for name in BENCHMARKS}) == []
