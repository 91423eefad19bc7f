"""The programs in examples/ run as they are, and stay short."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from nlhf_jax.configs import nash_md
from nlhf_jax.experiments.start import start
from nlhf_jax.storage import json_lines
from tests.experiments import pretrained

EXAMPLES = Path(__file__).parents[1] / 'examples'
MAX_LINES = {'arithmetic_checker.py': 20, 'own_game.py': 15, 'own_judge.py': 25, 'own_model.py': 40}


@pytest.fixture
def run(monkeypatch, capsys):
  """A function that runs an example and returns what it prints."""

  def run(name, *arguments):
    monkeypatch.setattr('sys.argv', [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name='__main__')
    return capsys.readouterr().out

  return run


def test_every_example_is_short():
  lines = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob('*.py')}
  assert lines.keys() == MAX_LINES.keys()
  for name, count in lines.items():
    assert count <= MAX_LINES[name], name


def test_own_game_finds_the_equilibrium(run):
  printed = run('own_game.py')
  assert 'equilibrium [0.576 0.174 0.249]' in re.sub(r'(\.\d{3})0*\d', r'\1', printed)
  assert '[0.6, 0.3, 0.1]: exploitability 0.017\n' in printed
  assert '[0, 0, 1]: exploitability 0.318\n' in printed


@pytest.mark.slow
def test_arithmetic_checker_teaches_a_small_transformer(run, tmp_path):
  """Of held-out prompts, 0.20 are answered rightly after SFT and 0.87 after 200 updates."""
  data = tmp_path / 'sums.jsonl'
  data.write_text(run('arithmetic_checker.py'))
  config = nash_md.get_config('file')
  del config.policies.nash_md
  config.judges = config.policies.self_play.judge = f'{EXAMPLES}/arithmetic_checker.py:right'
  config.data.update(path=str(data), schema='demonstrations', held_out=0.2)
  config.data.update(prompt_length=12, response_length=4)
  config.policies.self_play.update(steps=200, evaluate_every=100)
  config.policies.self_play.optimizer.learning_rate = 2e-3
  start(config, 'sums', tmp_path / 'run', tmp_path / 'stages')
  right = runpy.run_path(str(EXAMPLES / 'arithmetic_checker.py'))['right']
  lines = json_lines.read(tmp_path / 'run' / 'samples.jsonl')
  prompts = [line['prompt'] for line in lines]
  shares = {
    name: np.mean(right(prompts, [line['responses'][name] for line in lines]))
    for name in ('sft', 'self_play')
  }
  print(f'share of right answers: {shares}, {len(prompts)} held-out prompts')
  assert shares['sft'] < 0.4
  assert shares['self_play'] > 0.65
  table = json_lines.read_json(tmp_path / 'run' / 'results.json')['tables']['right']
  lead = (shares['self_play'] - shares['sft']) / 2  # as equal rewards are ties
  assert table['win_rate'][1][0] == pytest.approx(0.5 + lead, abs=1e-6)
  assert table['low'][1][0] > 0.5


def test_own_judge_trains_a_pretrained_model(run, tmp_path):
  pretrained.save(tmp_path)
  *steps, responses = run('own_judge.py', tmp_path).splitlines()
  assert len(steps) == 10
  assert all(re.fullmatch(r'step \d: \d+\.\d tokens, payoff [+-]0\.\d{3}', line) for line in steps)
  assert responses.startswith('[')


@pytest.mark.slow
def test_own_model_trains_a_recurrent_network(run):
  *steps, responses = run('own_model.py').splitlines()
  assert len(steps) == 10
  assert all(re.fullmatch(r'step \d: payoff [+-]0\.\d{3}', line) for line in steps)
  assert responses.startswith('[')
