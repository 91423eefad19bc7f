"""The programs in examples/ run as they are, and stay short."""

import re
import runpy
from pathlib import Path

import pytest

from tests.experiments import pretrained

EXAMPLES = Path(__file__).parents[1] / 'examples'
MAX_LINES = {'own_game.py': 15, 'own_judge.py': 25, 'own_model.py': 40}


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
