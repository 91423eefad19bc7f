"""Law: several processes, started as on several machines, are the same run as one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nlhf_jax import main

ROOT = Path(__file__).parents[1]
TOY = """
  --config=configs/dpo.py --config.data.posts=64 --config.data.held_out=16
  --config.model.width=16 --config.model.layers=1 --config.model.heads=2 --config.model.key_heads=1
  --config.model.head_size=8 --config.model.hidden=16 --config.sft.steps=40 --config.sft.batch=8
  --config.preference_model.steps=2 --config.preference_model.batch=8
  --config.policies.dpo.steps=2 --config.policies.dpo.batch=8
  --config.tournament.prompts=16
"""


def begin(count, folder, *more):
  """Starts `launch/local.sh`."""
  return subprocess.Popen(
    [ROOT / 'launch' / 'local.sh', str(count), *TOY.split(), f'--workdir={folder}', *more],
    env=os.environ | {'PYTHON': sys.executable},
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def launch(count, folder, *more):
  """Runs it to its end; what it printed."""
  program = begin(count, folder, *more)
  printed, _ = program.communicate()
  assert program.returncode == 0, printed[-3000:]
  return printed


def lines(folder, name):
  return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def run_one_and_two(folder, *more):
  """Runs one process, then two, and checks that they have the same responses and metrics."""
  launch(1, folder / 'one', *more)
  printed = launch(2, folder / 'two', *more)
  assert printed.count('Report:') == 1  # only the first process writes and prints
  one, two = (lines(folder / name, 'samples.jsonl') for name in ('one', 'two'))
  assert [line['responses'] for line in one] == [line['responses'] for line in two]
  one, two = (lines(folder / name, 'metrics.jsonl') for name in ('one', 'two'))
  assert len(one) == len(two)
  for alone, together in zip(one, two, strict=True):
    for name in alone.keys() - {
      'stage',
      'tokens_per_second',
      'seconds_per_step',
      'compiled_programs',
    }:
      assert together[name] == pytest.approx(alone[name], abs=1e-4), name


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
  run_one_and_two(tmp_path, '--config.sft.steps=2')


@pytest.mark.slow
def test_two_stopped_processes_resume(tmp_path):
  run_one_and_two(tmp_path)
  program = begin(2, tmp_path / 'cut')
  deadline = time.monotonic() + 300
  while not list((tmp_path / 'cut').glob('stages/sft-*/metrics.jsonl')):
    assert program.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.05)
  program.send_signal(signal.SIGTERM)
  printed, _ = program.communicate(timeout=120)
  assert program.returncode == 130, printed[-3000:]
  assert printed.count('run the same command again') == 1  # they stop together
  assert 'sft: resuming in' in launch(2, tmp_path / 'cut')
  for name in ('results.json', 'samples.jsonl'):
    assert (tmp_path / 'cut' / name).read_bytes() == (tmp_path / 'two' / name).read_bytes()


PROGRAM = """
import sys
import numpy as np
from nlhf_jax import distributed
from nlhf_jax.errors import Interrupted, UserError
distributed.join(sys.argv[1])
mine = 0.5 if distributed.is_first() else 7.5
found = [distributed.compute_on_first(lambda: np.array([mine, np.nan]), (2,)).tolist()]
for kind in (UserError, Interrupted):
  def fail():
    raise kind('no luck')
  try:
    distributed.compute_on_first(fail, (2,))
  except Exception as error:
    found.append(type(error).__name__)
print(found, file=sys.stderr)
"""


def test_what_the_first_process_computes_reaches_all():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  programs = [
    subprocess.Popen(
      [sys.executable, '-c', PROGRAM, f'{address},2,{number}'],
      cwd=ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in range(2)
  ]
  for program in programs:
    _, printed = program.communicate(timeout=300)
    assert program.returncode == 0, printed
    assert printed.splitlines()[-1] == "[[0.5, nan], 'UserError', 'Interrupted']"


@pytest.mark.parametrize('cluster', ['somewhere', '127.0.0.1:1,two,0', '127.0.0.1:1,2'])
def test_a_malformed_cluster_is_refused(cluster, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert main.main(['main', '--config=configs/tabular.py', f'--cluster={cluster}']) == 2
  assert f"--cluster='{cluster}' is neither auto nor" in capsys.readouterr().err
