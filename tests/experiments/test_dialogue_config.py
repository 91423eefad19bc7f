"""Runs whose policies converse: users, what determines a stage, and what is refused."""

import importlib
import json

import pytest

from nlhf_jax.configs import base
from nlhf_jax.data import tokenizers
from nlhf_jax.data.chat_templates import SPACED_TURNS
from nlhf_jax.data.dialogue_texts import reply_ids
from nlhf_jax.errors import UserError
from nlhf_jax.experiments import dialogue_config
from nlhf_jax.experiments.language.config import check, make_exploiter, make_policies
from nlhf_jax.experiments.language.stage_settings import stage_settings
from nlhf_jax.experiments.model_config import check_fit
from nlhf_jax.models import architectures
from nlhf_jax.sampling.dialogue_rollout import Dialogue
from nlhf_jax.sampling.users import user_from_function

FUNCTION = """
def ask(conversations, seeds):
  return ['why?' for _ in conversations]

def fail(conversations, seeds):
  return conversations[0][7]
"""


@pytest.fixture
def config(config_named):
  return config_named('clarify')


def shipped(name):
  """The policy of a shipped config."""
  config = importlib.import_module(f'nlhf_jax.configs.{name}').get_config()
  (row,) = config.policies.values()
  return row


def test_user_and_turns_belong_together(config):
  check(config)
  config.dialogue.user = ''
  with pytest.raises(UserError, match=r'config.dialogue.turns=2 needs a user'):
    check(config)
  config.dialogue.update(user='sft', turns=1)
  with pytest.raises(UserError, match=r"config.dialogue.turns=1: a policy .* 'sft' would never"):
    check(config)
  config.dialogue.user = ''
  with pytest.raises(UserError, match=r"config.data.source='clarify' is a task of conversations"):
    check(config)
  config.dialogue.turns = 0
  with pytest.raises(UserError, match=r'config.dialogue.turns=0 must be at least 1'):
    check(config)


@pytest.mark.parametrize(
  ('name', 'arguments', 'reason'),
  [
    ('dpo', {'beta': 0.1}, 'it fits samples that are not of the policy itself'),
    ('online_dpo', {'beta': 0.1}, 'its loss is not linear in the payoff'),
    ('nash_rejection', None, 'it chooses among conversations by payoff'),
  ],
)
def test_biased_algorithms_are_refused_by_name(config, name, arguments, reason):
  row = shipped(name) if arguments is None else base.policy(name, judge='oracle', **arguments)
  config.policies.mine = row
  message = f"config.policies.mine.algorithm: '{name}' does not learn from conversations: {reason}"
  with pytest.raises(UserError, match=message):
    make_policies(config)
  config.dialogue.update(turns=1, user='')
  assert 'mine' in make_policies(config)


def test_votes_and_biased_exploiters_are_refused(config):
  config.policies.mine = base.policy('online_ipo', tau=0.1, judge='oracle')
  config.policies.mine.votes = {}
  with pytest.raises(UserError, match=r'config.policies.mine.votes are asked on single responses'):
    make_policies(config)
  config.exploiter.update(algorithm='nash_rejection')
  config.exploiter.arguments = shipped('nash_rejection').arguments
  with pytest.raises(UserError, match=r"config.exploiter.algorithm: 'nash_rejection' does not"):
    make_exploiter(config)


def test_user_determines_policies_and_tournament_but_no_judge(config, tmp_path):
  (tmp_path / 'table.json').write_text(json.dumps({'...': None}))

  def settings():
    return stage_settings(config, make_policies(config), ['oracle', 'learned'])

  before = settings()
  assert before['nash_md']['dialogue']['turns'] == 2
  config.dialogue.user = str(tmp_path / 'table.json')
  after = settings()
  changed = {stage for stage in before if before[stage] != after[stage]}
  assert changed == {*config.policies, 'tournament'}
  (tmp_path / 'table.json').write_text(json.dumps({'which day ?': {'on monday': 1}, '...': None}))
  assert settings()['nash_md'] != after['nash_md']
  config.dialogue.update(turns=1, user='')
  assert not any('dialogue' in json.dumps(found) for found in settings().values())


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (None, 'it cannot be read'),
    ('{', 'it cannot be read'),
    ('[]', 'the file must hold an object'),
    ('{"a": "b"}', r"the entry 'a' must be an object"),
    ('{"a": {"b": true}}', r"the entry 'a' must be an object"),
    ('{"a": {"b": 0.5}}', r"the replies to 'a' must have probabilities that sum to 1"),
  ],
)
def test_wrong_tables_are_refused(config, tmp_path, text, message):
  path = tmp_path / 'table.json'
  if text is not None:
    path.write_text(text)
  config.dialogue.user = str(path)
  with pytest.raises(UserError, match=f"^config.dialogue.user='{path}': {message}"):
    dialogue_config.user_settings(config)


def test_function_is_found_by_its_source_and_its_errors_name_it(config, tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(FUNCTION)
  config.dialogue.user = f'{path}:ask'
  assert 'why?' in dialogue_config.user_settings(config)['user']['source']
  for written, message in (
    (f'{path}:none', "has no function 'none'"),
    ('nobody', 'must be written FILE.py:function or module:function'),
    (f'{tmp_path}/other.py:ask', 'cannot be read'),
  ):
    config.dialogue.user = written
    with pytest.raises(UserError, match=f"^config.dialogue.user='{written}'.*{message}"):
      dialogue_config.user_settings(config)
  what = f"config.dialogue.user='{path}:fail'"
  reply = dialogue_config.with_place(dialogue_config.find_function(f'{path}:fail', what), what)
  with pytest.raises(UserError, match=r"fail' failed on 1 conversations, .* 'hm': IndexError"):
    reply([[{'role': 'assistant', 'content': 'hm'}]], [0])


def test_conversations_must_fit_into_the_model(config):
  assert dialogue_config.conversation_length(config) == 2 * 8 + 4
  sizes = architectures.small(
    512, 8, layers=1, heads=1, key_heads=1, head_size=8, hidden=8, rotary_base=1e4
  )
  check_fit(config, sizes._replace(max_positions=32 + 2 * 21), 512)
  message = 'two conversations of 20 exceed the 73 positions of the model; .* config.dialogue.turns'
  with pytest.raises(UserError, match=message):
    check_fit(config, sizes._replace(max_positions=73), 512)


def test_replies_of_a_model_end_at_their_length():
  tokenizer = tokenizers.train(['one two'], 300, SPACED_TURNS)
  user = user_from_function(lambda conversations, seeds: ['one two one', 'a\0' * 9])
  dialogue = Dialogue(None, 2, 4)
  assert dialogue_config.template_length(tokenizer) == 3
  cut = dialogue_config.cut_replies(user, tokenizer, dialogue).function([], [])
  assert cut[0] == 'one two'
  assert all(len(row) <= 4 for row in reply_ids(tokenizer, cut, [True, True]))
  dialogue_config.check_sft_user(tokenizer, 4)
  with pytest.raises(UserError, match=r'config.dialogue.reply_length=3 leaves no room'):
    dialogue_config.check_sft_user(tokenizer, 3)
  with pytest.raises(UserError, match=r"config.dialogue.user='sft': there is no chat template"):
    dialogue_config.check_sft_user(tokenizers.train(['one two'], 300), 9)
