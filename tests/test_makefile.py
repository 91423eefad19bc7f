"""The commands of the Makefile, and the log that a run leaves in a file."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_wheel import TOY

pytestmark = pytest.mark.skipif(shutil.which('make') is None, reason='no make')
ROOT = Path(__file__).parents[1]
# Where `make test` runs these tests, its flags would change what the commands below print.
OUTSIDE_OF_MAKE = {name: value for name, value in os.environ.items() if not name.startswith('MAKE')}
MAX_LINES = 300  # of a log


def test_make_test_runs_linters_and_quick_tests():
  shown = subprocess.check_output(['make', '-n', 'test'], cwd=ROOT, env=OUTSIDE_OF_MAKE, text=True)
  *_, check, form, layers, tests = (line.partition('/bin/')[2] for line in shown.splitlines())
  assert (check, form) == ('ruff check .', 'ruff format --check .')
  assert layers.startswith('lint-imports')
  assert tests.strip() == "python -m pytest -m 'not slow'"


@pytest.mark.slow
def test_the_log_of_make_run_is_short_and_plain(tmp_path):
  flags = shlex.join([*TOY, f'--workdir={tmp_path}/run'])
  program = ['make', 'run', f'BIN={Path(sys.executable).parent}', f'ARGS={flags}']
  installed = ['-o', '.venv/installed']  # by who runs the tests
  with (tmp_path / 'log').open('wb') as log:
    command = [*program, *installed]
    subprocess.run(command, cwd=ROOT, env=OUTSIDE_OF_MAKE, stdout=log, stderr=log, check=True)
  text = (tmp_path / 'log').read_bytes()
  assert b'\r' not in text
  assert 30 < text.count(b'\n') < MAX_LINES
  assert (tmp_path / 'run' / 'report.html').exists()
