"""Law: machines with disks of their own, and one store, are the same run as one process."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.emulators import wait_for_checkpoint
from tests.test_distributed import ROOT, TOY, start_two

COMMAND = [
  *(sys.executable, '-m', 'nlhf_jax.main', *TOY.split()),
  *('--config.sft.steps=12', '--config.sft.evaluate_every=4'),
]


def begin(folder, url):
  """Starts two processes as on two machines: each has folders of its own, and both one store."""
  machines = [f'--workdir={folder / name}' for name in ('first', 'second')]
  return start_two([*COMMAND, f'--store={url}/store', machines[0]], machines[1])


def finish(programs):
  printed = [program.communicate(timeout=500)[1] for program in programs]
  assert [program.returncode for program in programs] == [0, 0], printed


def same(one, other):
  """Whether two work directories have the same responses and numbers, to the bit."""
  names = 'results.json', 'samples.jsonl'
  return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The work directory of one process with as many devices, which is not stopped."""
  folder = tmp_path_factory.mktemp('whole')
  flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=2'
  subprocess.run(
    [*COMMAND, f'--workdir={folder}'],
    cwd=ROOT,
    env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
    check=True,
  )
  return folder


STATE = """
import contextlib, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from nlhf_jax import distributed
from nlhf_jax.models import sharding
from nlhf_jax.storage import store
from nlhf_jax.structs import TrainState
from nlhf_jax.training.checkpoints import Checkpoints, load_slots

root, cluster = Path(sys.argv[1]), sys.argv[2].partition('=')[2]
distributed.join(cluster)
workdir = root / f'machine{jax.process_index()}'
distributed.check_alike('00', (workdir,), may_differ=True)
with (
  jax.set_mesh(sharding.make_mesh(1, 2, 1)),
  store.mirrored(f'file://{root}/store', workdir, workdir / 'stages'),
  contextlib.closing(Checkpoints(workdir / 'stages' / 'sft' / 'checkpoints')) as checkpoints,
):
  params = {'up': {'kernel': jnp.arange(8, dtype=jnp.bfloat16).reshape(4, 2) - 4}}
  rest = (-jnp.zeros(3), jnp.array([True, False]), jnp.float32(0.1))
  state = TrainState(jnp.int32(7), {'policy': params}, rest, {}, nonfinite=jnp.int32(0))
  state = sharding.put_parameters(state)
  none = jax.tree.map(jnp.zeros_like, state)
  found = checkpoints.restore(none)
  if int(found.step):
    slots = load_slots(workdir / 'stages' / 'sft' / 'checkpoints', none.params)
    pairs = zip(jax.tree.leaves((found, slots)), jax.tree.leaves((state, state.params)))
    same = [
      one.sharding == other.sharding
      and distributed.fetch(one).tobytes() == distributed.fetch(other).tobytes()
      for one, other in pairs
    ]
    print('restored', all(same), len(same), file=sys.stderr)
  else:
    checkpoints.save(state)
"""


@pytest.mark.slow
def test_a_state_returns_to_lost_machines(tmp_path):
  for _ in range(2):
    programs = start_two([sys.executable, '-c', STATE, str(tmp_path)])
    printed = [program.communicate(timeout=300)[1] for program in programs]
    assert [program.returncode for program in programs] == [0, 0], printed
    assert not list((tmp_path / 'machine1').rglob('checkpoints/*'))
    for number in range(2):
      shutil.rmtree(tmp_path / f'machine{number}')
  assert ['restored True 7' in text for text in printed] == [True, True], printed


@pytest.mark.slow
def test_two_machines_are_the_same_run_as_one_process(whole, tmp_path):
  finish(begin(tmp_path, f'file://{tmp_path}'))
  assert same(tmp_path / 'first', whole)
  # The first machine alone has the files of the run.
  assert not list((tmp_path / 'second').rglob('checkpoints/*'))
  assert not (tmp_path / 'second' / 'results.json').exists()


@pytest.mark.slow
@pytest.mark.parametrize('place', ['gs_bucket', 's3_bucket'])
def test_a_run_of_two_lost_machines_resumes_from_its_store(place, whole, request, tmp_path):
  url = request.getfixturevalue(place)
  programs = begin(tmp_path, url)
  wait_for_checkpoint(f'{url}/store', programs)
  for program in programs:
    program.kill()
    program.communicate()
  for name in ('first', 'second'):
    shutil.rmtree(tmp_path / name)
  finish(begin(tmp_path, url))
  assert same(tmp_path / 'first', whole)
