"""Logs: bars on terminals only, plain lines elsewhere, and what a log begins and ends with."""

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

from nlhf_jax import __version__, progress
from nlhf_jax.experiments.start import start

METRICS = {
  'loss': -0.01234,
  'win_rate_against_reference_by_learned': 0.5432,
  'kl_to_reference': 1.25,
  **{f'other_{number}': 1.0 for number in range(20)},
}
# Sizes at which a whole run takes a minute.
TOY = [
  *('data.posts=32', 'data.held_out=8', 'tournament.prompts=8'),
  *('model.width=16', 'model.layers=1', 'model.heads=2', 'model.key_heads=1'),
  *('model.head_size=8', 'model.hidden=16'),
  *(
    f'{stage}.{size}'
    for stage in ('sft', 'preference_model', 'policies.nash_md', 'policies.self_play')
    for size in ('steps=4', 'batch=4', 'evaluate_every=2')
  ),
]


def show(count, **options):
  with progress.progress(count, 'nash_md', 'step', **options) as bar:
    for _ in range(count):
      bar.set_metrics(METRICS)
      bar.update()


def test_a_log_has_one_plain_line_per_interval(monkeypatch, capsys):
  monkeypatch.setattr(progress, 'INTERVAL', 0.0)
  show(3)
  error = capsys.readouterr().err
  assert '\r' not in error
  lines = error.splitlines()
  assert len(lines) == 4  # one after each step, and one at the end
  expected = r'nash_md: {} of 3 steps, 0 s, win rate 0\.543, KL 1\.25, loss -0\.0123'
  for number, line in enumerate(lines):
    assert re.fullmatch(expected.format(min(number + 1, 3)), line), line
    assert len(line) <= 80


def test_quick_work_has_one_line_or_none(capsys):
  show(3)
  assert len(capsys.readouterr().err.splitlines()) == 1
  show(3, leave=False)
  show(3, delay=2.0)
  show(3, hidden=True)
  assert capsys.readouterr().err == ''


def test_work_that_fails_has_no_last_line(capsys):
  with contextlib.suppress(KeyboardInterrupt), progress.progress(3, 'sft', 'step') as bar:
    bar.update()
    raise KeyboardInterrupt
  assert capsys.readouterr().err == ''


def test_a_terminal_has_a_bar_that_fits(monkeypatch, capsys):
  monkeypatch.setattr(progress, 'is_on_terminal', lambda: True)
  monkeypatch.setenv('COLUMNS', '80')
  show(3)
  error = capsys.readouterr().err
  assert '\r' in error
  assert '3/3' in error
  assert max(map(len, re.split(r'[\r\n]', error))) <= 80


def test_a_terminal_that_does_not_tell_its_size_has_a_bar(monkeypatch):
  """As of `docker run -t` and `script`: 0 columns and 0 lines."""
  reading, terminal = pty.openpty()
  with os.fdopen(terminal, 'w') as file:
    with monkeypatch.context() as patched:
      patched.setenv('COLUMNS', '80')
      patched.setattr(sys, 'stderr', file)
      show(3)
    file.flush()
    written = b''
    while b'3/3' not in written and select.select([reading], [], [], 10)[0]:
      written += os.read(reading, 1 << 12)  # as much as the terminal has passed on
    assert b'3/3' in written, written
  os.close(reading)


@pytest.mark.parametrize('width', [0, 8, 20, 40, 200])
def test_only_whole_metrics_are_shown(width):
  line = progress.format_metrics(METRICS, width)
  assert len(line) <= width
  assert 'win rate 0.543, KL 1.25, loss -0.0123'.startswith(line)


def test_a_log_begins_with_device_and_parameters_and_ends_with_times(toy_run, tmp_path, capsys):
  config, folder = toy_run.copy_to(tmp_path)
  start(config, 'nash_md', folder / 'run', folder / 'stages')
  first, *_, last = capsys.readouterr().out.splitlines()
  counts = r'parameters: \d+,\d{3} trained, 0 fixed'
  place = re.escape(str(folder / 'run'))
  assert re.fullmatch(rf'nlhf_jax {re.escape(__version__)}; 1 x cpu; {counts}; {place}', first)
  assert re.fullmatch(r'  this run, in all +\d+ +\d+ +\d+', last)


@pytest.mark.slow
def test_the_log_of_a_whole_run_is_short_and_plain(tmp_path):
  command = [sys.executable, '-m', 'nlhf_jax.main', '--config=nash_md', f'--workdir={tmp_path}']
  ended = subprocess.run(
    [*command, *(f'--config.{change}' for change in TOY)],
    cwd=Path(__file__).parents[1],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    check=True,
  )
  log = ended.stdout.decode()
  assert '\r' not in log
  assert len(log.splitlines()) < 300
  for stage in ('sft', 'preference_model', 'nash_md', 'self_play'):
    assert re.search(rf'^{stage}: 4 of 4 steps, \d+ s', log, re.M)
    assert re.search(rf'^  {stage} +\d+ +\d+ +\d+$', log, re.M)
