"""Policies with an opponent and a prompter: what is refused, what is reported, and whole runs."""

import json

import numpy as np
import pytest

from nlhf_jax.data import tokenizers
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.language import config as language_config
from nlhf_jax.experiments.language.opponent_config import check_opponents
from nlhf_jax.experiments.language.worst_prompts import describe_chosen, summarise_prompts
from nlhf_jax.storage import json_lines

TEXTS = ['first', 'second', 'third']

# Changes of the policy's section, and what the refusal says.
REFUSED = {
  'algorithm': (
    {'algorithm': 'sppo'},
    r"opponent takes the place .* learns by 'sppo'; use self_play",
  ),
  'reads': ({'opponent.reads': 'all'}, r"opponent.reads='all' must be one of prompt, response"),
  'reward': ({'opponent.reward': 'kl'}, r"opponent.reward='kl' must be one of regularised, payoff"),
  'async': ({'async_judge': True}, r'opponent works in one process, .* without async_judge'),
  'written': ({'prompter.kind': 'written'}, r"prompter.kind='written': .* is not implemented; use"),
  'kind': ({'prompter.kind': 'all'}, r"prompter.kind='all' must be pool"),
  'follower': ({'opponent.reads': 'response'}, r'prompter is paid the exploitability'),
  'price': ({'opponent.tau': 0.1}, r'opponent.tau=0.1 must be .*arguments.tau=0.06 for a prompter'),
}


def changed(config, changes):
  row = config.policies.prompted
  for field, value in changes.items():
    section, _, name = field.rpartition('.')
    setattr(row[section] if section else row, name, value)
  return row


@pytest.mark.parametrize('case', REFUSED)
def test_settings_that_do_not_go_together_are_refused(case, config_named):
  changes, message = REFUSED[case]
  config = config_named('chosen_prompts')
  row = changed(config, changes)
  if 'algorithm' in changes:
    row.arguments = dict(eta=1.0, samples=2, every=1, log_z=0.5)
  with pytest.raises(UserError, match=rf'config.policies.prompted.{message}'):
    language_config.make_policy(row, 'prompted', config)


@pytest.mark.parametrize(
  ('field', 'value'), [('opponent.tau', -1.0), ('prompter.tau', 0.0), ('prompter.pool', 1)]
)
def test_numbers_out_of_range_are_refused(field, value, config_named):
  config = config_named('chosen_prompts')
  changed(config, {field: value})
  with pytest.raises(UserError, match=rf'config.policies.prompted.{field}=.* must be'):
    language_config.check(config)


def test_follower_needs_an_instruction_and_prompter_an_opponent(config_named):
  config = config_named('commit_and_answer')
  row = config.policies.leader
  row.opponent.instruction = ' '
  with pytest.raises(UserError, match=r'leader.opponent.instruction is empty'):
    language_config.make_policy(row, 'leader', config)
  config = config_named('chosen_prompts')
  del config.policies.prompted.opponent
  with pytest.raises(UserError, match=r'prompted.prompter is paid what an opponent gains'):
    language_config.make_policy(config.policies.prompted, 'prompted', config)


def test_pool_and_instruction_must_fit(config_named):
  tokenizer = tokenizers.train(['one two'], 300)
  config = config_named('chosen_prompts')
  policies = language_config.make_policies(config)
  with pytest.raises(UserError, match=r'prompter.pool=8 is more than the 7 training prompts'):
    check_opponents(config, policies, tokenizer, 7, 100)
  config = config_named('commit_and_answer')
  policies = language_config.make_policies(config)
  check_opponents(config, policies, tokenizer, 7, 100)
  with pytest.raises(
    UserError, match=r'leader.opponent.instruction: .* more than the 50 positions'
  ):
    check_opponents(config, policies, tokenizer, 7, 50)


def test_worst_prompt_is_measured_on_the_other_half():
  # The second prompt is the worst in one half of the pairs, the first in the other.
  wins = np.array([[0.9, 0.1, 0.9, 0.1], [0.2, 0.4, 0.2, 0.4], [0.8, 0.7, 0.8, 0.7]])
  found = summarise_prompts(wins, TEXTS, 'oracle')
  np.testing.assert_allclose(found['mean'], wins.mean())
  np.testing.assert_allclose(found['worst'], (0.4 + 0.9) / 2)
  assert found['prompt'] == 'second'
  assert found['low'] < found['mean'] < found['high']
  wins[1, 1::2] = np.nan
  found = summarise_prompts(wins, TEXTS, 'oracle')
  np.testing.assert_allclose(found['mean'], wins[[0, 2]].mean())
  assert found['prompt'] == 'first'
  with pytest.raises(UserError, match="'oracle' has no verdict on any prompt"):
    summarise_prompts(np.full((2, 4), np.nan), TEXTS, 'oracle')


def test_worst_of_equal_prompts_is_not_too_low():
  random = np.random.default_rng(0)
  wins = random.random((400, 16))
  halves = [
    summarise_prompts(wins[start : start + 20], [''] * 20, '') for start in range(0, 400, 20)
  ]
  # Twenty means of sixteen, of which the least would be 0.36.
  assert abs(np.mean([half['worst'] for half in halves]) - 0.5) < 0.06  # four standard errors


def test_chosen_prompts_are_told_apart_from_the_data():
  found = describe_chosen(np.array([0.25, 0.75, 0.0]), TEXTS)
  np.testing.assert_allclose(found['kl'], np.log(3) + 0.25 * np.log(0.25) + 0.75 * np.log(0.75))
  assert found['prompts'][0] == {'prompt': 'second', 'probability': 0.75, 'data': 1 / 3}
  assert describe_chosen(np.full(3, 1 / 3), TEXTS)['kl'] == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['chosen_prompts', 'commit_and_answer'])
def test_run_reports_and_resumes_what_was_trained_beside(name, config_named, tmp_path):
  from nlhf_jax.experiments.language import run as language

  experiment = language_config.make_experiment(config_named(name), name, tmp_path / 'stages')
  found = language.run(experiment, tmp_path / 'run')
  records = json_lines.read(tmp_path / 'run' / 'metrics.jsonl')
  logged = {key for record in records for key in record}
  assert 'payoff_of_opponent' in logged
  if name == 'chosen_prompts':
    assert 'payoff_of_prompter' in logged
    rates, chosen = found['worst_prompts']['win_rates'], found['worst_prompts']['chosen']
    assert rates.keys() == chosen.keys() == {'prompted', 'from_data'}
    assert all(0 <= rates[entry]['oracle']['worst'] <= 1 for entry in rates)
    assert len(chosen['prompted']['prompts']) == 5
    assert chosen['from_data']['kl'] < 1e-9
  else:
    assert found['refinement'].keys() == {'sft', 'self_play', 'leader'}
  stored = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert stored['policies'] == found['policies']
  # All stages are read again.
  again = language.run(experiment, tmp_path / 'again')
  assert again == found
