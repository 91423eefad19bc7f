"""Law: the files in `launch/` start the program as it is today."""

import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser

import pytest
import yaml

from nlhf_jax import command
from tests.test_distributed import ROOT, TOY

LAUNCH = ROOT / 'launch'
MANIFESTS = sorted(path.name for path in (LAUNCH / 'gke').glob('*.yaml'))

# Stands in for Slurm: starts SLURM_NTASKS processes, hands on SIGTERM, returns the worst status.
SRUN = """#!/usr/bin/env bash
set -uo pipefail
while [[ $1 == -* ]]; do shift; done
pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids+=($!); done
worst=0
for pid in "${pids[@]}"; do
  while :; do wait "$pid"; status=$?; kill -0 "$pid" 2>/dev/null || break; done
  ((status > worst)) && worst=$status
done
exit "$worst"
"""
SCONTROL = '#!/usr/bin/env bash\necho "scontrol $*"\n'


CHECKERS = {
  'shellcheck': ['shellcheck', '-x', *LAUNCH.glob('*.sh'), LAUNCH / 'slurm.sbatch'],
  'yamllint': ['yamllint', '--strict', LAUNCH / 'gke'],
  'hadolint': ['hadolint', LAUNCH / 'docker' / 'Dockerfile'],
  'kubernetes': ['kubernetes-validate', '--strict', *(LAUNCH / 'gke').glob('*.yaml')],
}


@pytest.mark.slow
@pytest.mark.parametrize('name', CHECKERS)
def test_checkers_find_nothing(name):
  program, *arguments = CHECKERS[name]
  path = f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}'
  found = shutil.which(program, path=path)
  if not found:
    pytest.skip(f"{program} is missing; pip install '.[emulators]' has it")
  done = subprocess.run([found, *arguments], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr


def find_containers(value):
  """Yields the containers of a Kubernetes resource, however deep they are."""
  if isinstance(value, dict):
    yield from value.get('containers', [])
    for part in value.values():
      yield from find_containers(part)
  elif isinstance(value, list):
    for part in value:
      yield from find_containers(part)


@pytest.mark.parametrize('name', MANIFESTS)
def test_manifests_give_flags_that_exist(name):
  documents = list(yaml.safe_load_all((LAUNCH / 'gke' / name).read_text()))
  [container] = find_containers(documents)
  settings = command.parse_flags(['run', *container['args']], command.FLAGS)
  command.load_config(settings.config)
  assert settings.workdir.startswith(container['volumeMounts'][0]['mountPath'])
  variables = re.findall(r'\$\((\w+)\)', settings.cluster)
  assert variables == [variable['name'] for variable in container.get('env', [])]


def test_image_pins_every_requirement():
  setup = ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  needed = re.findall(r'^[\w-]+', setup['options']['install_requires'], re.MULTILINE)
  pinned = re.findall(r'^([\w-]+)==[\d.]+$', (LAUNCH / 'docker/constraints.txt').read_text(), re.M)
  assert set(needed) <= set(pinned)


def run_under_slurm(folder, *flags, **variables):
  """`launch/slurm.sbatch`, started by bash with a stand-in for Slurm first in PATH."""
  folder.mkdir(parents=True)
  for name, text in {'srun': SRUN, 'scontrol': SCONTROL}.items():
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
  slurm = {'SLURM_JOB_ID': str(os.getpid()), 'SLURM_STEP_NODELIST': '127.0.0.1'}
  return subprocess.run(
    ['bash', LAUNCH / 'slurm.sbatch', *flags],
    env=os.environ
    | slurm
    | {'SLURM_NTASKS': '4', 'PYTHON': sys.executable, 'WORKDIR': str(folder / 'run')}
    | {'PATH': f'{folder}:{os.environ["PATH"]}', 'JAX_PLATFORMS': 'cpu'}
    | variables,
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


@pytest.mark.slow
def test_slurm_file_starts_four_processes(tmp_path):
  flags = [flag for flag in TOY.split() if not flag.startswith('--config=')]
  done = run_under_slurm(tmp_path / 'slurm', *flags, '--config.sft.steps=2', CONFIG='dpo')
  assert done.returncode == 0, done.stdout[-3000:]
  assert done.stdout.count('Report:') == 1
  assert 'scontrol' not in done.stdout


@pytest.mark.parametrize(('status', 'queued'), [(0, False), (2, False), (75, True), (130, True)])
def test_slurm_file_queues_again_what_can_resume(status, queued, tmp_path):
  python = tmp_path / 'python'
  python.write_text(f'#!/usr/bin/env bash\nexit {status}\n')
  python.chmod(0o755)
  done = run_under_slurm(tmp_path / 'slurm', PYTHON=str(python))
  assert done.returncode == status
  assert (f'scontrol requeue {os.getpid()}' in done.stdout) == queued
