"""Law: sharded equals unsharded, on every mesh of eight devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.models import sharding
from tests.models import on_meshes

HERE = Path(__file__).parent
# Optimising the programs takes longer than running them.
FLAGS = ('--xla_force_host_platform_device_count=8', '--xla_backend_optimization_level=0')


def outcomes():
  """The results of `on_meshes`: one device, every mesh, two with adapters, and resharding."""
  program = subprocess.run(
    [sys.executable, '-m', 'tests.models.on_meshes'],
    env=os.environ | {'XLA_FLAGS': ' '.join(FLAGS)},
    cwd=HERE.parents[1],
    capture_output=True,
    text=True,
    check=False,
  )
  assert program.returncode == 0, program.stderr[-3000:]
  return [json.loads(line) for line in program.stdout.splitlines()]


def equal(one, other):
  assert other['sampled'] in ([], one['sampled'])
  np.testing.assert_allclose(one['params'], other['params'], atol=2e-6)


def test_sharded_equals_unsharded_in_less_memory():
  alone, *meshes, adapter, adapter_on_mesh, resharded = outcomes()
  assert len(meshes) == len(on_meshes.MESHES) == 10
  assert sum(bool(outcome['sampled']) for outcome in meshes) == 3
  for (_, fsdp, tensor), outcome in zip(on_meshes.MESHES, meshes, strict=True):
    equal(alone, outcome)
    # Norms are small and not split.
    assert outcome['held'] == pytest.approx(alone['held'] / (fsdp * tensor), rel=0.02, abs=1500)
  equal(adapter, adapter_on_mesh)

  assert resharded['step'] == 5  # a checkpoint and a model's files, loaded on another mesh
  assert resharded['same'] == [True, True]
  assert resharded['parts'] == 8
  assert resharded['largest'] <= resharded['whole'] / 8  # one part of a tensor at a time


def test_mesh_that_does_not_fit_devices_is_refused():
  count = jax.device_count()
  with pytest.raises(UserError, match=f'fsdp=3 .* must be the {count} devices'):
    sharding.make_mesh(0, 3, 1)
