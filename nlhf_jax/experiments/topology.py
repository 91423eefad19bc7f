"""TPUs that programs are compiled for without having them, by the compiler in `libtpu`."""

import importlib.util
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from nlhf_jax.errors import UserError, first_line
from nlhf_jax.experiments.program_memory import read_excess

# libtpu looks for a TPU of this machine otherwise.
ALONE = {'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost'}


def find_devices(name: str) -> list[Any]:
  """The devices of a topology such as `v5e:8x8`.

  Raises:
    UserError: if the compiler is not installed, or there is no such topology.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise UserError(
      '--topology needs the compiler for TPUs, which is not installed; run '
      "pip install '.[tpu]' in a checkout."
    )
  jax.config.update('jax_platforms', 'cpu')  # the compiler is there, but no TPU
  for variable, value in ALONE.items():
    os.environ.setdefault(variable, value)
  try:
    found = topologies.get_topology_desc(platform='tpu', topology_name=name)
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    raise UserError(
      f"--topology='{name}' is none that the compiler knows ({first_line(error)}); write it as "
      'v5e:8x8, v6e:4x4 or v5p:2x2x2.'
    ) from None
  return list(found.devices)


def device_memory(device: Any) -> int:
  """Bytes that programs may use of a device.

  The compiler says so when it refuses one that needs more.
  """
  where = jax.sharding.SingleDeviceSharding(device)
  number = jax.ShapeDtypeStruct((), jnp.float32, sharding=where)
  try:
    jax.jit(lambda x: jnp.full(2**40, x)).lower(number).compile()
  except jax.errors.JaxRuntimeError as error:
    excess = read_excess(str(error))
    if excess:
      return excess[1]
  raise UserError(
    '--topology: the compiler does not say how much memory a device has; add --memory.'
  )
