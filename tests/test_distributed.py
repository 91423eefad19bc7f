"""Law: several processes, started as on several machines, are the same run as one.

If one of them ends early, for whatever reason, all end within `LIMIT` seconds.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nlhf_jax import distributed, main
from tests.chaos.small_disk import can_mount, small_disk

LIMIT = 15  # seconds
ROOT = Path(__file__).parents[1]
SMALL = """
  --config.data.posts=64 --config.data.held_out=16
  --config.model.width=16 --config.model.layers=1 --config.model.heads=2 --config.model.key_heads=1
  --config.model.head_size=8 --config.model.hidden=16 --config.sft.steps=40 --config.sft.batch=8
  --config.preference_model.steps=2 --config.preference_model.batch=8
  --config.tournament.prompts=16
"""
TOY = f"""
  --config=configs/dpo.py {SMALL} --config.policies.dpo.steps=2 --config.policies.dpo.batch=8
"""


def begin(count, folder, *more, toy=TOY):
  """Starts `launch/local.sh`."""
  return subprocess.Popen(
    [ROOT / 'launch' / 'local.sh', str(count), *toy.split(), f'--workdir={folder}', *more],
    env=os.environ | {'PYTHON': sys.executable},
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def launch(count, folder, *more, toy=TOY):
  """Runs it to its end; what it printed."""
  program = begin(count, folder, *more, toy=toy)
  printed, _ = program.communicate()
  assert program.returncode == 0, printed[-3000:]
  return printed


def lines(folder, name):
  return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def run_one_and_two(folder, *more, toy=TOY):
  """Runs one process, then two, and checks that they have the same responses and metrics."""
  launch(1, folder / 'one', *more, toy=toy)
  printed = launch(2, folder / 'two', *more, toy=toy)
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
      'stage_programs',
      'compile_seconds',
    }:
      assert together[name] == pytest.approx(alone[name], abs=1e-4), name


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
  run_one_and_two(tmp_path, '--config.sft.steps=2')


ASYNCHRONOUS = f"""
  --config=configs/nash_md.py {SMALL} --config.data.prompt_length=64
  --config.policies.self_play.steps=2 --config.policies.self_play.batch=8
  --config.policies.nash_md.steps=4 --config.policies.nash_md.batch=8
  --config.policies.nash_md.async_judge=True
"""


@pytest.mark.slow
def test_two_processes_judge_in_the_background_as_one(tmp_path):
  by_length = '--config.policies.nash_md.judge=lengths'
  run_one_and_two(tmp_path, '--config.sft.steps=2', by_length, toy=ASYNCHRONOUS)
  program = begin(2, tmp_path / 'refused', toy=ASYNCHRONOUS)
  printed, _ = program.communicate()
  assert program.returncode == 2
  assert "nash_md.async_judge=True: the judge 'learned' is a network" in printed


def results(folder):
  """The numbers of the results, but for times."""

  def numbers(value, path=''):
    match value:
      case dict():
        return {k: v for key in value for k, v in numbers(value[key], f'{path}/{key}').items()}
      case list():
        return {
          k: v for i, item in enumerate(value) for k, v in numbers(item, f'{path}/{i}').items()
        }
    return {} if path.endswith('/seconds') else {path: value}

  return numbers(json.loads((folder / 'results.json').read_text()))


@pytest.mark.slow
def test_two_processes_compare_judges_as_one(tmp_path):
  toy = f"""
    --config=configs/preferences.py {SMALL} --config.judges=learned,lengths
    --config.preference_model.evaluate_every=1 --config.sft.steps=2
  """
  for count in (1, 2):
    launch(count, tmp_path / str(count), toy=toy)
  assert results(tmp_path / '2') == pytest.approx(results(tmp_path / '1'), abs=1e-4, nan_ok=True)


@pytest.mark.slow
def test_two_processes_evaluate_as_one(tmp_path):
  launch(1, tmp_path / 'run', '--config.sft.steps=2')
  toy = f"""
    --config=configs/evaluate.py:synthetic {SMALL} --config.judges=learned,lengths
    --config.sft.steps=2 --config.tournament.length=8 --config.tournament.batch=8
    --config.entries=mine={tmp_path}/run:dpo,theirs={tmp_path}/run/samples.jsonl
  """
  for count in (1, 2):
    launch(count, tmp_path / str(count), toy=toy)
  one, two = (lines(tmp_path / str(count), 'samples.jsonl') for count in (1, 2))
  assert [line['responses'] for line in one] == [line['responses'] for line in two]
  assert results(tmp_path / '2') == pytest.approx(results(tmp_path / '1'), abs=1e-4, nan_ok=True)
  # What is cached is not computed again, and is the same in both processes.
  before = sorted(path.read_bytes() for path in (tmp_path / '2').glob('judgements/*'))
  assert len(before) == 3
  launch(2, tmp_path / '2', toy=toy)
  assert before == sorted(path.read_bytes() for path in (tmp_path / '2').glob('judgements/*'))


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
  assert program.returncode == distributed.RESUME_STATUS, printed[-3000:]
  assert printed.count('run the same command again') == 1  # they stop together
  assert 'sft: resuming in' in launch(2, tmp_path / 'cut')
  for name in ('results.json', 'samples.jsonl'):
    assert (tmp_path / 'cut' / name).read_bytes() == (tmp_path / 'two' / name).read_bytes()


PROGRAM = """
import sys
import numpy as np
from nlhf_jax import distributed
from nlhf_jax.errors import Interrupted, UserError
distributed.join(sys.argv[1].partition('=')[2])
mine = 0.5 if distributed.is_first() else 7.5
found = [distributed.compute_on_first(lambda: np.array([mine, np.nan]), (2,)).tolist()]
found.append(distributed.value_from_first(lambda: {'mine': [mine, None]}))
bits = np.array([-0.0, mine], np.float32) if distributed.is_first() else np.empty(2, np.float32)
found.append([str(it) for it in distributed.send_from_first(bits)])
found.append(distributed.send_from_first(np.array(mine)).shape)
for kind in (UserError, Interrupted):
  def fail():
    raise kind('no luck')
  for ask in (lambda: distributed.compute_on_first(fail, (2,)),
              lambda: distributed.value_from_first(fail)):
    try:
      ask()
    except Exception as error:
      found.append(type(error).__name__)
print(found, file=sys.stderr)
"""


def start_two(command, *more):
  """Starts two processes without a launcher; `more` are flags of the second one."""
  return start_processes(2, command, *more)


def start_processes(count, command, *more):
  """Starts processes without a launcher; `more` are flags of all but the first one."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  gloo = {'JAX_PLATFORMS': 'cpu', 'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo'}
  return [
    subprocess.Popen(
      [*command, f'--cluster={address},{count},{number}', *(more if number else ())],
      cwd=ROOT,
      env=os.environ | gloo,
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in range(count)
  ]


def test_what_the_first_process_computes_reaches_all():
  for program in start_two([sys.executable, '-c', PROGRAM]):
    _, printed = program.communicate(timeout=300)
    assert program.returncode == 0, printed
    found = "[0.5, nan], {'mine': [0.5, None]}, ['-0.0', '0.5'], ()"
    errors = "'UserError', 'UserError', 'Interrupted', 'Interrupted'"
    assert printed.splitlines()[-1] == f'[{found}, {errors}]'


STOPPING = """
import sys, time
import numpy as np
from nlhf_jax import command, distributed
from nlhf_jax.errors import Interrupted
from nlhf_jax.training import interrupts

def judge():
  print('at work', file=sys.stderr, flush=True)
  while not interrupts.requested():
    time.sleep(0.05)
  raise Interrupted('the judge')

def work(config, settings):
  distributed.any_process(False)
  with interrupts.deferred():
    if sys.argv[1] == 'judge':
      try:
        distributed.compute_on_first(judge, ())
      except Interrupted as stopped:
        print('stopped', file=sys.stderr)
        raise
    for number in range(10**6):
      if number == 5:
        print('at work', file=sys.stderr, flush=True)
      if interrupts.stop_reached():
        print('stopped', number, file=sys.stderr)
        interrupts.check('the toy')
      time.sleep(0.05 if distributed.is_first() else 0.01)
      if number % 10 == 9:
        distributed.any_process(False)

arguments = ['main', '--config=tabular', sys.argv[2]]
sys.exit(command.run_command(arguments, '', {}, work))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  ('kind', 'number', 'kill'),
  [
    ('steps', 0, signal.SIGTERM),
    ('steps', 1, signal.SIGTERM),
    ('steps', 0, signal.SIGINT),
    ('steps', 1, signal.SIGINT),
    ('judge', 1, signal.SIGTERM),  # while the first process waits for the judge
  ],
)
def test_a_signal_to_one_process_stops_both_at_one_step(kind, number, kill):
  programs = start_two([sys.executable, '-c', STOPPING, kind])
  while programs[0].stderr.readline() != 'at work\n':
    assert programs[0].poll() is None
  time.sleep(0.5)
  programs[number].send_signal(kill)
  printed = [program.communicate(timeout=LIMIT)[1] for program in programs]
  assert [program.returncode for program in programs] == [distributed.RESUME_STATUS] * 2, printed
  stopped = [re.search('^stopped.*$', text, re.MULTILINE)[0] for text in printed]
  assert stopped[0] == stopped[1]


@pytest.mark.slow
@pytest.mark.parametrize('number', [0, 1])
def test_a_signal_to_one_process_saves_a_step(number, tmp_path):
  programs = start_two([*TRAINING, f'--workdir={tmp_path}'])
  wait_for_training(programs, tmp_path)
  programs[number].send_signal(signal.SIGTERM)
  assert_all_end(programs, time.monotonic())
  assert [program.returncode for program in programs] == [distributed.RESUME_STATUS] * 2
  (manifest,) = tmp_path.glob('stages/sft-*/checkpoints/manifest-*.json')
  assert 0 < int(re.search(r'\d+', manifest.name)[0]) < 3000


FAILING = """
import sys
from nlhf_jax import command, distributed
from nlhf_jax.errors import UserError

def work(config, settings):
  distributed.any_process(False)  # or the other would wait for the first connection
  try:
    if distributed.is_first() == (sys.argv[1] == '0'):
      raise UserError('no luck')
  finally:
    distributed.any_process(False)  # the others are here; the one that fails must not join them
  while True:
    distributed.any_process(False)

arguments = ['main', '--config=tabular', sys.argv[2]]
sys.exit(command.run_command(arguments, '', {}, work))
"""
IMPATIENT = """
import sys
from nlhf_jax import distributed
distributed.START_SECONDS = 5
"""


@pytest.mark.parametrize('number', [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_user_error_in_one_process_ends_both(number):
  programs = start_two([sys.executable, '-c', FAILING, str(number)])
  printed = [program.communicate(timeout=60)[1].splitlines()[-1] for program in programs]
  assert printed[number] == 'error: no luck'
  assert programs[number].returncode == 2
  assert printed[1 - number] == distributed.LOST
  assert programs[1 - number].returncode == distributed.RESUME_STATUS


@pytest.mark.slow
@pytest.mark.parametrize('number', [0, 1])
def test_a_process_does_not_wait_for_ever_for_the_others_to_start(number):
  program = start_two([sys.executable, '-c', FAILING.replace('import sys', IMPATIENT), '0'])
  program[1 - number].kill()
  program[1 - number].communicate()
  _, printed = program[number].communicate(timeout=60)
  assert program[number].returncode == distributed.RESUME_STATUS
  assert printed.splitlines()[-1] == distributed.NOT_STARTED


TRAINING = [sys.executable, '-m', 'nlhf_jax.main', *TOY.split(), '--config.sft.steps=3000']


def wait_for_training(programs, folder):
  deadline = time.monotonic() + 300
  while not list(folder.glob('stages/sft-*/metrics.jsonl')):
    assert all(program.poll() is None for program in programs)
    assert time.monotonic() < deadline
    time.sleep(0.05)


def assert_all_end(programs, since):
  """All end in time, with a status that is not 0; what each printed last."""
  printed = [program.communicate(timeout=LIMIT)[1].splitlines() for program in programs]
  assert time.monotonic() - since < LIMIT
  assert all(program.returncode for program in programs)
  return [lines[-1] if lines else '' for lines in printed]


@pytest.mark.slow
@pytest.mark.parametrize('number', [0, 1])
@pytest.mark.parametrize('kill', [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_ends_the_other(number, kill, tmp_path):
  programs = start_two([*TRAINING, f'--workdir={tmp_path}'])
  wait_for_training(programs, tmp_path)
  programs[number].send_signal(kill)
  printed = assert_all_end(programs[1 - number :][:1], time.monotonic())
  assert printed == [distributed.LOST]
  programs[number].kill()
  programs[number].communicate()


@pytest.mark.slow
@pytest.mark.parametrize('number', [0, 1])
def test_a_killed_process_ends_all_of_a_launch(number, tmp_path):
  program = begin(2, tmp_path, '--config.sft.steps=3000')
  wait_for_training([program], tmp_path)
  children = Path(f'/proc/{program.pid}/task/{program.pid}/children').read_text().split()
  os.kill(int(children[number]), signal.SIGKILL)
  since = time.monotonic()
  printed, _ = program.communicate(timeout=LIMIT)
  assert time.monotonic() - since < LIMIT
  assert program.returncode in (128 + signal.SIGKILL, distributed.RESUME_STATUS)
  assert sum(line.startswith('error: ') for line in printed.splitlines()) in (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('change', 'expected'),
  [
    ('--workdir=elsewhere', "process 1 has other files in '"),
    ('--stages=elsewhere', "process 1 has other files in '"),
    ('--config.sft.steps=7', 'process 1 has another config than process 0'),
    ('--config.sft.stepz=7', 'has no such field'),
  ],
)
def test_processes_that_are_not_alike_end(change, expected, tmp_path):
  elsewhere = change.replace('elsewhere', str(tmp_path / 'elsewhere'))
  command = [*TRAINING, f'--workdir={tmp_path / "run"}', f'--stages={tmp_path / "run" / "stages"}']
  programs = start_two(command, elsewhere)
  printed = [program.communicate(timeout=60)[1].splitlines()[-1] for program in programs]
  assert any(expected in line for line in printed)
  assert {program.returncode for program in programs} <= {2, distributed.RESUME_STATUS}
  for line in printed:
    assert line == distributed.LOST or expected in line


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason='only root can mount a small disk')
def test_a_full_disk_in_the_first_process_ends_both(tmp_path):
  with small_disk(tmp_path / 'disk', 8 << 20):
    workdir = tmp_path / 'disk' / 'run'
    programs = start_two([*TRAINING, f'--workdir={workdir}', '--config.sft.evaluate_every=50'])
    wait_for_training(programs, workdir)
    with (tmp_path / 'disk' / 'filler').open('wb') as filler, contextlib.suppress(OSError):
      filler.write(bytes(8 << 20))
    _, printed = programs[0].communicate(timeout=60)  # at its next record
    assert programs[0].returncode
    assert 'No space left on device' in printed
    assert assert_all_end(programs[1:], time.monotonic()) == [distributed.LOST]


@pytest.mark.parametrize('cluster', ['somewhere', '127.0.0.1:1,two,0', '127.0.0.1:1,2'])
def test_a_malformed_cluster_is_refused(cluster, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert main.main(['main', '--config=configs/tabular.py', f'--cluster={cluster}']) == 2
  assert f"--cluster='{cluster}' is neither auto nor" in capsys.readouterr().err
