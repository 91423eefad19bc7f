"""Whatever stands on the command line is accepted, or refused in one sentence, and at once."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos import command_lines
from tests.chaos.command_lines import ACCEPTED, FIRST_SENTENCE, REFUSED

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
  monkeypatch.chdir(ROOT)
  monkeypatch.setenv('COLUMNS', '80')


def check(lines):
  """Ends all lines in this process; how many were refused and accepted."""
  found = Counter()
  for line in lines:
    ending = command_lines.run(line)  # a traceback would be an error of this test
    assert not ending.fault(), line
    found[ending.status == REFUSED] += 1
  return found


def test_some_command_lines_give_sentences():
  found = check(command_lines.generate(100, seed=2))
  assert found[True] > 70
  assert found[False] > 3


@pytest.mark.slow
def test_thousand_command_lines_give_sentences():
  found = check(command_lines.generate(1_000, seed=1))
  assert found[True] > 500
  assert found[False] > 50


@pytest.mark.parametrize(
  ('line', 'expected'),
  [
    (['nash_md', 'data.held_out=100000000000000000000'], 'below 2^31'),
    (['nash_md', 'data.response_length=100000000000000000000'], 'below 2^31'),
    (['nash_md', 'data.response_length=2147483647'], 'a batch of tokens would need at least'),
    (['nash_md', 'model.layers=2147483647'], 'the weights and their gradient would need'),
    (['nash_md', 'data.posts=2147483647'], 'the embedded task would need at least 429.5 GB'),
    (['nash_md', 'data.vocabulary=2147483647'], 'the tokenizer would need at least'),
    (['nash_md', 'model.rotary_base=nan'], 'config.model.rotary_base=nan must be above 0'),
    (['nash_md', 'experiment=tabular'], 'needs game, tau, reference, start, sampling, only'),
    (['nash_md', 'experiment=judges'], "config.experiment='judges' needs sizes, tests"),
    (['nash_md', 'arguments.tau=1'], 'the nearest is --config.policies.nash_md.arguments.tau.'),
    (['nash_md', 'model.compute=float16'], "config.model.compute='float16' must be one of"),
    (['nash_md', 'model.remat=all'], "config.model.remat='all' must be one of"),
    (['nash_md', 'model.lora.rank=2', 'model.lora.targets=x'], "there is no layer 'x'"),
    (['tabular:random_population', 'game.raters=2147483647'], 'payoffs of all pairs of actions'),
    (['tabular:dial', 'game.actions=2147483647'], 'payoffs of all pairs of actions'),
    (['tabular:blotto', 'game.soldiers=99', 'game.fields=99'], 'more than 10,000,000 placements'),
    (['token_game', 'game.response_length=2147483647'], 'or more, but at most 1000'),
    (['token_game', 'game.raters=2147483647'], 'payoffs of all pairs of actions'),
    (['sample_complexity', 'rates.world.actions=2147483647'], 'payoffs of all pairs of actions'),
  ],
)
def test_sizes_are_refused_before_memory_is_asked_for(line, expected):
  name, *changes = line
  ending = command_lines.run([f'--config={name}', *(f'--config.{it}' for it in changes)])
  assert ending.status == REFUSED
  assert expected in ending.error


def test_many_steps_are_counted_at_once():
  for name in ('nash_md', 'egpo'):
    line = [f'--config={name}', f'--config.policies.{name}.steps=20000000']
    ending = command_lines.run(line)
    assert ending.status in ACCEPTED
    assert not ending.fault()


@pytest.mark.parametrize(
  'command',
  [
    ['list'],
    ['--help'],
    ['run', '--help'],
    ['run', '--config=nash_md', '--print'],
  ],
)
def test_a_closed_pipe_ends_quietly(command):
  reading, writing = os.pipe()
  os.close(reading)
  process = subprocess.run(
    [sys.executable, '-m', 'nlhf_jax', *command],
    stdout=writing,
    stderr=subprocess.PIPE,
    cwd=ROOT,
    check=False,
  )
  os.close(writing)
  assert process.stderr == b''
  assert process.returncode == 141


@pytest.mark.skipif(not Path('/dev/full').is_char_device(), reason='there is no /dev/full')
def test_a_full_output_gives_a_sentence():
  with open('/dev/full', 'w') as full:
    command = [sys.executable, '-m', 'nlhf_jax', 'list']
    ended = subprocess.run(
      command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False
    )
  assert ended.returncode == REFUSED
  assert ended.stderr.startswith('error: cannot print: No space left on device;')
  assert ended.stderr.count('\n') == 1


@pytest.mark.slow
def test_processes_give_their_first_sentence_soon(tmp_path):
  lines = list(command_lines.generate(200, seed=2))
  for line in random.Random(0).sample(lines, 10):
    command = [sys.executable, '-m', 'nlhf_jax', 'run', *line, f'--workdir={tmp_path}']
    start = time.monotonic()
    with subprocess.Popen(
      command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
      printed = process.stdout.read(1)
      assert time.monotonic() - start < 3 * FIRST_SENTENCE, line  # beside other tests
      time.sleep(2)
      process.kill()  # if it was accepted and is at work
      printed += process.stdout.read()
    assert printed, line
    assert b'Traceback' not in printed, line
