"""Law: sharded equals unsharded: on four meshes of eight devices.

The slow tier has all ten, and adapters.
"""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.models import sharding
from tests import conftest
from tests.models import on_meshes

HERE = Path(__file__).parent
# The programs run for less time than it takes to optimise them.
FLAGS = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'


def outcomes(which):
  """The lines that `on_meshes` prints."""
  program = subprocess.run(
    [sys.executable, '-m', 'tests.models.on_meshes', which],
    env=os.environ | {'XLA_FLAGS': f'{conftest.FLAGS} {FLAGS}'},
    cwd=HERE.parents[1],
    capture_output=True,
    text=True,
    check=False,
  )
  assert program.returncode == 0, program.stderr[-3000:]
  return [json.loads(line) for line in program.stdout.splitlines()]


def assert_equal(one, other):
  assert other['sampled'] in ([], one['sampled'])
  assert other['talks'] in ([], one['talks'])
  np.testing.assert_allclose(one['params'], other['params'], atol=2e-6)


@pytest.mark.parametrize('which', ['quick', pytest.param('all', marks=pytest.mark.slow)])
def test_sharded_equals_unsharded_in_less_memory(which):
  expected, count = {'quick': (on_meshes.QUICK, 4), 'all': (on_meshes.MESHES, 10)}[which]
  alone, *meshes, moved = outcomes(which)
  if which == 'all':
    *meshes, adapter, adapter_on_mesh = meshes
    assert_equal(adapter, adapter_on_mesh)
  assert len(meshes) == len(expected) == count
  assert sum(bool(outcome['sampled']) for outcome in meshes) == 3
  assert sum(bool(outcome['talks']) for outcome in meshes) == (which == 'all')
  for (_, fsdp, tensor), outcome in zip(expected, meshes, strict=True):
    assert_equal(alone, outcome)
    # Norms, a few numbers each, are whole everywhere.
    assert outcome['held'] == pytest.approx(alone['held'] / (fsdp * tensor), rel=0.02, abs=1500)

  assert moved['step'] == 5
  assert moved['same'] == [True, True]
  assert moved['parts'] == 8
  assert moved['largest'] <= moved['whole'] / 8  # a part of a tensor is read at a time


def test_a_mesh_of_other_devices_is_refused():
  count = jax.device_count()
  with pytest.raises(UserError, match=f'fsdp=3 .* must be the {count} devices'):
    sharding.make_mesh(0, 3, 1)


@pytest.mark.parametrize('meshed', [False, True])
def test_first_arguments_are_committed_as_results_are(meshed):
  """Otherwise the second step of every stage is compiled like the first."""
  mesh = sharding.make_mesh(data=0, fsdp=1, tensor=1)
  with sharding.use_mesh(mesh) if meshed else contextlib.nullcontext():
    step = jax.jit(lambda state, batch: jax.tree.map(lambda leaf: leaf + batch.sum(), state))
    batch = jax.device_put(np.ones(8), jax.devices()[0])  # committed, as rows of a mesh are
    tree = {'embed': {'embedding': jax.numpy.ones((8, 2))}, 'step': jax.numpy.zeros(())}
    state = sharding.put_parameters(tree)
    step(step(state, batch), batch)
    assert step._cache_size() == 1
    if not meshed:
      step(tree, batch)
      assert step._cache_size() == 2  # what the law prevents


@dataclass(frozen=True)
class Chip:
  """What JAX knows of a TPU."""

  id: int
  slice_index: int
  process_index: int
  coords: tuple[int, int, int]
  platform: str = 'tpu'
  device_kind: str = 'TPU v5 lite'
  core_on_chip: int = 0


def two_slices():
  """Two slices of 2 x 2 chips, with the devices of both mixed."""
  places = [(x, y, 0) for y in range(2) for x in range(2)]
  chips = [Chip(4 * s + n, s, s, place) for s in range(2) for n, place in enumerate(places)]
  return chips[::2] + chips[1::2]


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 4, 1), (4, 1, 2), (2, 2, 2)])
def test_only_examples_are_split_between_slices(shape, monkeypatch):
  monkeypatch.setattr(jax, 'devices', two_slices)
  devices = sharding.arrange_slices(shape, sharding.find_slices())
  assert devices.shape == shape
  assert {chip.id for chip in devices.flat} == set(range(8))
  for row in devices:  # all that hold parts of one set of parameters
    assert len({chip.slice_index for chip in row.flat}) == 1
  halves = np.split(devices, 2)
  assert [{chip.slice_index for chip in half.flat} for half in halves] == [{0}, {1}]


def test_slices_that_cannot_share_the_examples_are_refused(monkeypatch):
  monkeypatch.setattr(jax, 'devices', two_slices)
  monkeypatch.setattr(jax, 'device_count', lambda: 8)
  with pytest.raises(UserError, match=r'config.mesh.data=1 must be a multiple of the 2 slices'):
    sharding.make_mesh(0, 8, 1)
