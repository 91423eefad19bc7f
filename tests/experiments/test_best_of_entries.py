"""Entries that are the best of n responses of a model: config, files, page and messages."""

import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.experiments.evaluate import cached_responses
from nlhf_jax.experiments.evaluate.best_of_entries import parse_best_of, split_entries
from nlhf_jax.experiments.evaluate.config import make_experiment
from nlhf_jax.games.best_of_n import kl_bound
from nlhf_jax.judges import registry
from nlhf_jax.judges.kinds import ExternalKind, judge_by_texts
from nlhf_jax.storage import json_lines
from tests.experiments import evaluations, pretrained
from tests.experiments.evaluations import run

FIELD = 'config.entries'


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp('model') / 'llama'
  pretrained.save(folder)
  return folder


@pytest.fixture
def config_of(toy, tmp_path):
  """A function that makes a toy evaluation on 24 prompts, which responses of 6 tokens answer."""
  json_lines.write(tmp_path / 'prompts.jsonl', [{'prompt': f'tell {n}'} for n in range(24)])

  def make(entries, **changed):
    config = evaluations.make_config(toy, entries=entries, judges='lengths', **changed)
    config.prompts.path = str(tmp_path / 'prompts.jsonl')
    return config

  return make


def test_best_of_four_beats_the_model(config_of, model, tmp_path, monkeypatch, capsys):
  shorter = lambda prompts, left, right: np.array(
    [
      (len(one) < len(other)) + (len(one) == len(other)) / 2
      for one, other in zip(left, right, strict=True)
    ]
  )
  kind = ExternalKind('pairrm', lambda *_: judge_by_texts('shorter', shorter), lambda _: 'shorter')
  monkeypatch.setitem(registry.EXTERNAL, 'pairrm', kind)
  entries = ','.join(
    [
      f'mine={model}',
      f'long=best_of(4, {model}, judge=lengths)',
      f'short=best_of(4, {model}, judge=pairrm, by=score)',
      f'best_of(2, {model}, judge=lengths, by=knockout)',
    ]
  )
  results = run(config_of(entries), tmp_path / 'run')
  assert results['policies'] == ['mine', 'long', 'short', 'best_of_2_llama']
  assert results['tables'].keys() == {'lengths'}
  rates = np.array(results['tables']['lengths']['win_rate'])[:, 0]
  assert rates[1] > rates[3] > rates[2]
  assert rates[1] > 0.6 > 0.45 > rates[2]
  best = results['best_of']
  assert best['long'] | {'kl': 0} == {
    'n': 4,
    'judge': 'lengths',
    'rule': 'win_rate',
    'kl': 0,
    'kl_bound': kl_bound(4),
    'win_rate_bound': 0.8,
    'judged_pairs': 24 * 6,
    'missing_verdicts': 0,
  }
  assert 0.1 < best['long']['kl'] < best['long']['kl_bound']
  assert best['best_of_2_llama']['kl'] is None
  printed = capsys.readouterr().out
  assert "'long' was selected by the lengths judge, which also scores it" in printed
  assert "'short' was selected" not in printed
  page = (tmp_path / 'run' / 'report.html').read_text()
  assert '"kl_bound":0.636' in page
  files = {path.parent.name: json_lines.read(path) for path in tmp_path.rglob('responses.jsonl')}
  texts = {name: {text for row in rows for text in row['texts']} for name, rows in files.items()}
  assert [len(files[name]) for name in results['policies']] == [3, 12, 24, 6]
  assert texts['long'] != texts['best_of_2_llama']
  monkeypatch.setattr(cached_responses, 'make_model', lambda entry: pytest.fail('computed again'))
  assert run(config_of(entries), tmp_path / 'run') == results


def test_commas_between_parentheses_do_not_end_an_entry():
  text = 'a=b.json, mine=best_of(4, DIR, judge=gpm),best_of(2,X:y,judge=remote , by=score) ,c(1'
  items = split_entries(text)
  assert items == [
    'a=b.json',
    'mine=best_of(4, DIR, judge=gpm)',
    'best_of(2,X:y,judge=remote , by=score)',
    'c(1',
  ]
  assert parse_best_of(items[1], FIELD) == ('mine', (4, 'DIR', 'gpm', 'win_rate'))
  assert parse_best_of(items[2], FIELD) == ('', (2, 'X:y', 'remote', 'score'))
  assert parse_best_of(items[0], FIELD) is parse_best_of(items[3], FIELD) is None


@pytest.mark.parametrize(
  ('entries', 'message'),
  [
    ('best_of(4, DIR)', r"' must be written as best_of\(16, DIR, judge=pairrm\)"),
    ('a=best_of(four, DIR, judge=lengths)', 'must be written as'),
    ('best_of(4, DIR, judge=lengths, n=3)', 'must be written as'),
    ('best_of(4, DIR, judge=lengths', r"'best_of\(4' must be written as"),
    ('best_of(4, DIR, judge=lengths, by=luck)', 'by=luck must be one of win_rate, score, knockout'),
    ('best_of(1, DIR, judge=lengths)', 'the best of 1 selects nothing'),
    ('best_of(6, DIR, judge=lengths, by=knockout)', 'choose a power of two'),
    ('best_of(4, DIR, judge=nobody)', "judge=nobody: config.judges='nobody' must be some of"),
    ('best_of(4, DIR, judge=mine.py:words)', 'judge=mine.py:words: a function cannot select'),
    ('best_of(4, DIR, judge=oracle)', 'only the embedded task has one'),
    ('best_of(4, one.jsonl, judge=lengths)', "'one.jsonl' is a file, which has one response"),
    ('best_of(4, nowhere, judge=lengths)', "config.entries='nowhere' is no folder"),
  ],
)
def test_user_errors_are_explained(entries, message, config_of, model, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  json_lines.write(tmp_path / 'one.jsonl', [{'prompt': 'a', 'response': 'x'}])
  with pytest.raises(UserError, match=message):
    make_experiment(config_of(entries.replace('DIR', str(model))), 'evaluate', tmp_path)


def test_greedy_sampling_and_no_prompts_are_refused(config_of, model, tmp_path):
  config = config_of(f'best_of(4, {model}, judge=lengths)')
  config.tournament.filters.top_k = 1
  with pytest.raises(UserError, match='needs responses that differ'):
    make_experiment(config, 'evaluate', tmp_path)
  config.tournament.filters.top_k = 0
  config.prompts.path = ''
  config.judges = ''
  config.harness.tasks = 'openllm'
  with pytest.raises(UserError, match='responses to the prompts of a tournament'):
    make_experiment(config, 'evaluate', tmp_path)
