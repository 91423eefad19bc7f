"""Runs whose policies converse, from their data to the page."""

import json
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from nlhf_jax.data import tokenizers
from nlhf_jax.experiments.language import run as language
from nlhf_jax.experiments.language.config import make_experiment
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Responses
from nlhf_jax.tasks.clarify_corpus import ASK

HH = [
  {
    'chosen': f'\n\nHuman: question {n}?\n\nAssistant: yes {n}\n\nHuman: why {n}?\n\nAssistant: so',
    'rejected': '',
  }
  for n in range(12)
]


@pytest.fixture
def recorded(config_named, tmp_path):
  """A config on dialogues whose user is the data."""
  config = config_named('nash_md', 'file')
  json_lines.write(tmp_path / 'hh.jsonl', HH)
  config.data.update(path=str(tmp_path / 'hh.jsonl'), schema='hh_dialogues', response_length=6)
  config.dialogue.update(turns=2, user='data', reply_length=16)
  config.judges = 'lengths'
  for row in config.policies.values():
    row.judge = 'lengths'
  return config


def test_user_from_data_replies_as_recorded(recorded, tmp_path, capsys):
  experiment = make_experiment(recorded, 'recorded', tmp_path / 'stages')
  tokenizer, prompts = experiment.corpus.tokenizer, experiment.corpus.held_out.prompts
  row = tokenizers.response_ids(tokenizer, ['yes'])[0]
  shape = len(prompts.tokens), 1, len(row)
  side = Responses(np.broadcast_to(row, shape), np.ones(shape, bool), turn=np.ones(shape, np.int32))
  replies = experiment.dialogue.user(prompts, side, jax.random.key(0))
  assert not replies.over.any()
  asked = tokenizers.prompt_texts(tokenizer, *prompts)
  for question, tokens, length in zip(asked, replies.tokens, replies.lengths, strict=True):
    number = re.fullmatch(r'question (\d+)\?', question)[1]
    assert tokenizer.decode(tokens[0, : length[0]]).strip() == f'why {number}?<sep>'
  assert 'learn from comparisons' not in capsys.readouterr().out


@pytest.mark.slow
def test_run_with_recorded_replies_ends_with_its_page(recorded, tmp_path):
  experiment = make_experiment(recorded, 'recorded', tmp_path / 'stages')
  results = language.run(experiment, tmp_path / 'run')
  assert set(results['turns'].values()) == {2.0}
  for line in json_lines.read(tmp_path / 'run' / 'samples.jsonl'):
    number = re.fullmatch(r'question (\d+)\?', line['prompt'])[1]
    assert {turns[1] for turns in line['dialogues'].values()} == {f'why {number}?'}


@pytest.mark.slow
def test_sft_policy_may_be_the_user(config_named, tmp_path):
  config = config_named('clarify')
  config.dialogue.update(user='sft', reply_length=6)
  config.exploiter = ConfigDict()
  for name in [name for name in config.policies if name != 'self_play_oracle']:
    del config.policies[name]
  experiment = make_experiment(config, 'clarify', tmp_path / 'stages')
  results = language.run(experiment, tmp_path / 'run')
  assert set(results['turns'].values()) == {2.0}
  replies = [
    line['dialogues'][name][1]
    for line in json_lines.read(tmp_path / 'run' / 'samples.jsonl')
    for name in results['policies']
  ]
  assert len(set(replies)) > 1


@pytest.mark.slow
def test_clarify_runs_to_a_page_of_conversations(config_named, tmp_path):
  config = config_named('clarify')
  config.sft.update(steps=200, batch=32, evaluate_every=200)
  for name in ('online_ipo', 'best_response', 'self_play_oracle'):
    del config.policies[name]
  config.exploiter.exploited = 'nash_md'
  config.tournament.update(best_of=2, best_of_judge='oracle')
  experiment = make_experiment(config, 'clarify', tmp_path / 'stages')
  results = language.run(experiment, tmp_path / 'run')
  assert results['policies'] == ['sft', 'self_play', 'nash_md', 'best_of_2']
  assert results['tables'].keys() == {'oracle', 'learned'}
  assert results['exploitability'].keys() == {'nash_md'}
  assert results['kl_to_reference']['sft'] == pytest.approx(0, abs=1e-5)
  samples = json_lines.read(tmp_path / 'run' / 'samples.jsonl')
  talks = [(line, name) for line in samples for name in results['policies']]
  for line, name in talks:
    turns = line['dialogues'][name]
    assert line['turns'][name] == (len(turns) + 1) / 2 == (2 if turns[0] == ASK else 1)
    assert line['responses'][name].startswith(turns[0])
  for name, mean in results['turns'].items():
    assert mean == np.mean([line['turns'][name] for line in samples])
  page = (tmp_path / 'run' / 'report.html').read_text()
  assert json.dumps(samples[0]['dialogues'])[:20].replace(' ', '') in page.replace(' ', '')
  logged = json_lines.read(tmp_path / 'run' / 'metrics.jsonl')
  last = [record for record in logged if record['stage'] == 'nash_md'][-1]
  assert {'entropy', 'payoff', 'kl_to_reference', 'unfinished'} <= last.keys()
