"""Refinement at inference: the prompts of each round, what is measured, and what is refused."""

import json

import numpy as np
import pytest

from nlhf_jax.data import tokenizers
from nlhf_jax.data.chat_templates import SPACED_TURNS
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.language.refinement_stage import ask_again, judge_rounds
from nlhf_jax.experiments.refinement_config import make_refinement
from nlhf_jax.structs import Prompts, Responses


def test_next_prompt_has_the_tokens_of_the_chat_template():
  tokenizer = tokenizers.train(['one two better please'], 300, SPACED_TURNS)
  questions, answers = ['one', 'two two'], ['two', 'one one']
  prompts = tokenizers.pad_prompts(tokenizer, tokenizers.prompt_ids(tokenizer, questions), 6)
  rows = tokenizers.response_ids(tokenizer, answers)
  side = tokenizers.pad_responses(tokenizer, rows, 4)
  talks = [
    [
      {'role': 'user', 'content': question},
      {'role': 'assistant', 'content': answer},
      {'role': 'user', 'content': 'better please'},
    ]
    for question, answer in zip(questions, answers, strict=True)
  ]
  expected = tokenizers.prompt_ids(tokenizer, talks)
  asked = ask_again(tokenizer, prompts, side, 'better please')
  assert tokenizers.masked_rows(*asked) == expected
  # A response that the limit cut gets its stop token here.
  cut = tokenizers.pad_responses(tokenizer, [row[:-1] for row in rows], 4)
  again = ask_again(tokenizer, prompts, cut, 'better please')
  assert tokenizers.masked_rows(*again) == expected
  assert again.tokens.shape == asked.tokens.shape


def test_pairs_without_a_verdict_are_left_out():
  rows = np.zeros((3, 1, 2), int)
  side = Responses(rows, rows == 0)
  prompts = Prompts(rows[:, 0], rows[:, 0] == 0)
  judge = lambda comparison: np.array([0.5, np.nan, -0.25])[:, None, None]
  np.testing.assert_array_equal(judge_rounds(judge, prompts, side, side), [1.0, 0.25])


def test_conversations_are_not_refined(config_named):
  config, tokenizer = config_named('clarify'), tokenizers.train(['one'], 300)
  assert make_refinement(config, tokenizer, 99) is None
  config.refinement.rounds = 2
  with pytest.raises(UserError, match=r'config.refinement.rounds=2: single responses are refined'):
    make_refinement(config, tokenizer, 99)
  config.dialogue.turns = 1
  first = make_refinement(config, tokenizer, 99)
  config.refinement.instruction = 'Shorter.'
  assert first.rounds == 2
  assert first.file != make_refinement(config, tokenizer, 99).file
  with pytest.raises(UserError, match=r'more than the 50 positions of the model; lower'):
    make_refinement(config, tokenizer, 50)


@pytest.mark.slow
def test_run_reports_win_rates_of_every_round(toy_run, tmp_path):
  from nlhf_jax.experiments.language import run as language
  from nlhf_jax.experiments.language.config import make_experiment

  config, folder = toy_run.copy_to(tmp_path)
  config.refinement.rounds = 2
  experiment = make_experiment(config, 'nash_md', folder / 'stages')
  found = language.run(experiment, folder / 'run')['refinement']
  assert found.keys() == {'sft', 'self_play', 'nash_md'}
  for by_judge in found.values():
    assert by_judge.keys() == {'oracle', 'learned'}
    for rounds in by_judge.values():
      assert len(rounds) == 2
      assert all(0 <= one['low'] <= one['win_rate'] <= one['high'] <= 1 for one in rounds)
  assert 'refinement' in (folder / 'run' / 'report.html').read_text()
  stored = json.loads((folder / 'run' / 'results.json').read_text())
  assert stored['refinement'] == found


def test_instruction_may_repeat_the_prompt():
  tokenizer = tokenizers.train(['one two better please'], 300, SPACED_TURNS)
  questions, answers = ['one', 'two two'], ['two', 'one one']
  prompts = tokenizers.pad_prompts(tokenizer, tokenizers.prompt_ids(tokenizer, questions), 6)
  side = tokenizers.pad_responses(tokenizer, tokenizers.response_ids(tokenizer, answers), 4)
  asked = ask_again(tokenizer, prompts, side, 'better {prompt}')
  talks = [
    [
      {'role': 'user', 'content': question},
      {'role': 'assistant', 'content': answer},
      {'role': 'user', 'content': f'better {question}'},
    ]
    for question, answer in zip(questions, answers, strict=True)
  ]
  assert tokenizers.masked_rows(*asked) == tokenizers.prompt_ids(tokenizer, talks)
  assert asked.tokens.shape == (2, 6 + 4 + 32)
