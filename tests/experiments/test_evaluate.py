"""Evaluations from a config to files, tables and a page."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from nlhf_jax.data import tokenizers
from nlhf_jax.errors import UserError
from nlhf_jax.experiments import data_config, export_policy
from nlhf_jax.experiments.evaluate import cached_responses
from nlhf_jax.experiments.evaluate.config import make_experiment
from nlhf_jax.experiments.language.config import make_experiment as make_language_experiment
from nlhf_jax.experiments.language.finished_run import load_entry
from nlhf_jax.judges import pairrm_scoring, registry
from nlhf_jax.judges.kinds import ExternalJudge, ExternalKind
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Comparison
from nlhf_jax.tasks.summaries import generator, styles
from tests import described_runs
from tests.experiments import evaluations, pretrained
from tests.experiments.evaluations import run


@pytest.fixture
def config_of(toy):
  """A function that makes a toy config of an evaluation."""
  return lambda *source, **changed: evaluations.make_config(toy, *source, **changed)


MT_BENCH = {
  f'mt_bench.{name}': f'{name}.jsonl' for name in ('questions', 'references', 'judge_prompts')
}
POLICIES = ['reporter', 'lister', 'asker']  # of the embedded task's three styles


def write_styles(folder, count):
  """A `samples.jsonl` of policies with one style each: its path, and the prompts."""
  posts = [record.prompt for record in itertools.islice(generator.examples(7), count)]
  rows = [
    {'prompt': post, 'responses': dict(zip(POLICIES, styles.perfect_summaries(post), strict=True))}
    for post in posts
  ]
  json_lines.write(folder / 'samples.jsonl', rows)
  return str(folder / 'samples.jsonl'), posts


def test_cycle_of_three_styles_is_found(config_of, tmp_path, capsys):
  path, posts = write_styles(tmp_path, 40)
  results = run(config_of('synthetic', entries=path, judges=''), tmp_path / 'run')
  assert described_runs.undescribed(tmp_path / 'run', 'evaluate') == set()
  table = results['tables']['oracle']
  assert results['policies'] == POLICIES
  # Two of three raters prefer report over list, list over question, question over report.
  rate = np.array(table['win_rate'])
  assert rate[0, 1] == rate[1, 2] == rate[2, 0] > 0.6
  assert results['cycles']['oracle']['count'] == 1
  assert results['cycles']['oracle']['first'][0]['policies'] == POLICIES
  for row in results['ranking']['oracle']:
    assert row['lottery'] == pytest.approx(1 / 3)
    assert row['borda'] == pytest.approx(0.5)
    assert row['bradley_terry'] == pytest.approx(0, abs=1e-3)
  assert results['order_consistency']['oracle'] == {
    'consistency': 1,
    'first_place': pytest.approx(0),
  }
  assert table['pairs'] == {'count': 3, 'significant': 3, 'significant_holm': 3}
  rows = json_lines.read(next((tmp_path / 'run' / 'judgements').iterdir()))
  assert len(rows) == 40 * 6
  outputs = json.loads((tmp_path / 'run/policies/lister/model_outputs.json').read_text())
  assert [row['instruction'] for row in outputs] == posts
  page = (tmp_path / 'run' / 'report.html').read_text()
  assert posts[0] in page
  made = page[page.index('<footer id="made"') :]
  stages = re.findall(r'<code>(\w+)</code></th><td class="number">\d+\.\d</td>', made)
  assert stages == ['judges', 'responses', 'tournament']
  printed = capsys.readouterr().out
  assert 'a cycle: reporter > lister > asker > reporter' in printed


def test_second_run_judges_nothing(config_of, tmp_path, monkeypatch):
  path, _ = write_styles(tmp_path, 12)
  config = config_of('synthetic', entries=path, judges='')
  before = run(config, tmp_path / 'run')
  monkeypatch.setitem(
    data_config.ORACLES, 'synthetic', lambda *texts: pytest.fail('computed again')
  )
  assert run(config, tmp_path / 'run') == before
  config.tournament.early_stopping = 0.2  # other settings of the tournament need no new judgements
  assert run(config, tmp_path / 'run')['early_stopping']['level'] == 0.2


def test_early_stopping_ends_a_clear_tournament(config_of, tmp_path, monkeypatch):
  rows = [{'prompt': f'p{n}', 'responses': {'good': 'good', 'bad': 'bad'}} for n in range(200)]
  json_lines.write(tmp_path / 'two.jsonl', rows)
  clear = lambda prompts, left, right: np.where([text == 'good' for text in left], 0.9, 0.1)
  monkeypatch.setitem(data_config.ORACLES, 'synthetic', clear)
  config = config_of('synthetic', entries=str(tmp_path / 'two.jsonl'), judges='')
  config.tournament.early_stopping = 0.05
  results = run(config, tmp_path / 'run')
  assert results['early_stopping']['all']
  assert results['comparisons'] < 100
  assert results['comparisons'] % 8 == 0
  table = results['tables']['oracle']
  assert 0.5 < table['low'][0][1] < 0.9 < table['high'][0][1]
  even = lambda prompts, left, right: np.full(len(left), 0.5)
  monkeypatch.setitem(data_config.ORACLES, 'synthetic', even)
  results = run(config, tmp_path / 'other')
  assert not results['early_stopping']['all']
  assert results['comparisons'] == 200


def test_run_export_and_file_under_trained_judge(config_of, tmp_path, toy_run, monkeypatch):
  of_run, folder = toy_run.copy_to(tmp_path / 'theirs')
  stages, workdir = folder / 'stages', folder / 'run'
  experiment = make_language_experiment(of_run, 'theirs', stages)
  export_policy.write_policy(
    experiment, load_entry(experiment, 'sft'), tmp_path / 'out', merged=False
  )
  prompts = [line['prompt'] for line in json_lines.read(workdir / 'samples.jsonl')]
  theirs = [{'prompt': prompt, 'response': 'in short, no'} for prompt in prompts[:6]]
  json_lines.write(tmp_path / 'theirs.jsonl', theirs)
  entries = f'{workdir}:sft,exported={tmp_path}/out,{tmp_path}/theirs.jsonl'
  config = config_of('synthetic', entries=entries, judges='learned')
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
    assert rate[0, 1] == 0.5  # greedy responses of the same policy
  assert results['tables']['learned']['win_rate'][0][2] != 0.5
  assert len(list(stages.glob('preference_model-*'))) == 1  # the trained judge of the run is reused
  monkeypatch.setattr(cached_responses, 'make_model', lambda entry: pytest.fail('computed again'))
  assert run(config, tmp_path / 'run', stages) == results


def test_too_long_prompts_lose_their_beginning(config_of, tmp_path, capsys):
  pretrained.save(tmp_path / 'llama')
  prompts = [{'prompt': 'tell red'}, {'prompt': 'tell blue ' * 300}, {'prompt': 'say'}]
  json_lines.write(tmp_path / 'prompts.jsonl', prompts)
  config = config_of('synthetic', entries=f'mine={tmp_path}/llama', judges='')
  config.prompts.path = str(tmp_path / 'prompts.jsonl')
  run(config, tmp_path / 'run')
  assert '1 of 3 conversations are longer than the ' in capsys.readouterr().out
  (path,) = (tmp_path / 'run').rglob('responses.jsonl')
  assert [len(record['texts']) for record in json_lines.read(path)] == [3]


def test_missing_responses_are_reported(config_of, tmp_path, capsys):
  rows = [{'prompt': word, 'response': 'x'} for word in ('first', 'second', 'third')]
  json_lines.write(tmp_path / 'whole.jsonl', rows)
  json_lines.write(tmp_path / 'part.jsonl', rows[::2])
  config = config_of(entries=f'{tmp_path}/whole.jsonl,{tmp_path}/part.jsonl')
  assert make_experiment(config, 'evaluate', tmp_path).prompts == ['first', 'third']
  note = "2 prompts have a response in every file, and are used; 'part' has no response to 1 of 3, "
  assert f"{note}such as 'second'" in capsys.readouterr().out


def test_responses_to_other_prompts_are_reported(config_of, tmp_path, capsys):
  rows = [{'prompt': word, 'response': 'x'} for word in ('first', 'second', 'third')]
  json_lines.write(tmp_path / 'part.jsonl', rows[:1])
  json_lines.write(tmp_path / 'whole.jsonl', rows)
  config = config_of(entries=f'{tmp_path}/part.jsonl,{tmp_path}/whole.jsonl')
  assert make_experiment(config, 'evaluate', tmp_path).prompts == ['first']
  note = "'whole' has 2 responses to other prompts, such as 'second'; not used."
  assert note in capsys.readouterr().out


def test_lone_surrogates_are_judged(config_of, shared, tmp_path):
  folder = shared / 'field' / 'judges'
  entries = ','.join(f'{folder}/{name}.json' for name in ('long5', 'short5', 'cut'))
  results = run(config_of(entries=entries, judges='lengths'), tmp_path / 'run')
  assert results['policies'] == ['long', 'short', 'cut']
  assert results['tables']['lengths']['win_rate'] == [[0.5, 1, 1], [0, 0.5, 0], [0, 1, 0.5]]
  outputs = json.loads((tmp_path / 'run/policies/cut/model_outputs.json').read_text())
  assert {row['output'] for row in outputs} == {'Cut emoji \ufffd'}


def test_pairrm_averages_logits_in_evaluation_and_training(config_of, tmp_path, monkeypatch):
  """The mean of both orders is taken of the logits, not of the probabilities."""
  there, back = 3.0, -0.5  # logits of left over right in the two orders
  score = lambda prompts, left, right: np.array(
    [there if (one, other) == ('x', 'y') else back for one, other in zip(left, right, strict=True)],
    np.float32,
  )
  monkeypatch.setitem(
    registry.EXTERNAL,
    'pairrm',
    ExternalKind(
      'pairrm',
      lambda section, folder, stop: ExternalJudge(
        'a ranker', pairrm_scoring.make_preference(score), pairrm_scoring.combine_orders, None
      ),
      lambda section: 'a ranker',
    ),
  )
  json_lines.write(
    tmp_path / 'two.jsonl', [{'prompt': 'a', 'responses': {'one': 'x', 'other': 'y'}}]
  )
  config = config_of(entries=f'{tmp_path}/two.jsonl', judges='pairrm')
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
  trained_on = pairrm_scoring.make_judge(score, tokenizer)(Comparison(prompts, x, y))
  assert trained_on[0, 0, 0] + 0.5 == pytest.approx(table[0][1], abs=1e-6)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({}, 'config.entries is empty'),
    ({'entries': 'a=two.jsonl,a=two.jsonl'}, "two are called 'a_good'"),
    ({'entries': 'nowhere'}, "config.entries='nowhere' is no folder"),
    ({'entries': 'missing.json'}, "there is no file 'missing.json'"),
    ({'entries': 'damaged:sft'}, "'damaged/config.json' is damaged"),
    ({'entries': 'old:sft'}, "'old/config.json' is damaged or from another version"),
    ({'entries': 'other.jsonl', 'tournament.early_stopping': 0.1}, 'needs two policies'),
    ({'entries': 'two.jsonl,other.jsonl'}, "'other' has no response to 1 of 1, such as 'a'"),
    ({'entries': 'toothless'}, "config.entries='toothless' holds no tokenizer"),
    ({'entries': 'mute'}, 'config.prompts.path is empty'),
    ({'entries': 'two.jsonl', 'judges': 'nobody'}, "config.judges='nobody' must be some of"),
    (
      {'entries': 'two.jsonl', 'tournament.early_stopping': 1.0},
      'config.tournament.early_stopping=1.0',
    ),
    ({'entries': 'two.jsonl', 'mt_bench.questions': 'q', 'mt_bench.mode': 'x'}, 'single or pair'),
    ({'entries': 'two.jsonl', 'mt_bench.questions': 'q'}, 'config.mt_bench.references is empty'),
    ({'entries': 'two.jsonl', **MT_BENCH}, 'files of responses cannot'),
    ({'entries': 'two.jsonl', 'harness.tasks': 'openllm'}, 'files of responses cannot'),
    ({'entries': 'two.jsonl', 'prompts.path': 'talk.jsonl'}, 'a prompt is a conversation'),
    ({'entries': 'up.json'}, r"'\.\.' of 'up\.json' cannot name a folder .*, as NAME=up\.json"),
    ({'entries': 'red.json'}, r"'\\x1b\[31mred' of 'red\.json' cannot name a folder"),
  ],
)
def test_user_errors_are_explained(changes, message, config_of, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  json_lines.write(Path('two.jsonl'), [{'prompt': 'a', 'responses': {'good': 'x', 'bad': 'y'}}])
  json_lines.write(Path('other.jsonl'), [{'prompt': 'b', 'response': 'x'}])
  for file, name in (('up', '..'), ('red', '\x1b[31mred')):
    json_lines.write(Path(f'{file}.json'), [{'instruction': 'a', 'output': 'x', 'generator': name}])
  talk = [{'role': role, 'content': 'hm'} for role in ('user', 'assistant', 'user')]
  json_lines.write(Path('talk.jsonl'), [{'prompt': talk}])
  for folder in ('toothless', 'mute'):
    pretrained.save(Path(folder))
  Path('toothless/tokenizer.json').unlink()
  for folder, content in (('damaged', '{'), ('old', '{"experiment": "language", "sft": {}}')):
    Path(folder).mkdir()
    Path(folder, 'config.json').write_text(content)
  json_lines.write(
    Path('questions.jsonl'), [{'question_id': 1, 'category': 'math', 'turns': ['a']}]
  )
  answer = {'question_id': 1, 'choices': [{'index': 0, 'turns': ['b']}]}
  json_lines.write(Path('references.jsonl'), [answer])
  prompt = dict.fromkeys(('name', 'system_prompt', 'prompt_template', 'output_format'), 'x')
  json_lines.write(Path('judge_prompts.jsonl'), [prompt])
  config = config_of('synthetic', judges='')
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message):
    make_experiment(config, 'evaluate', tmp_path)
