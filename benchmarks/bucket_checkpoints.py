"""Seconds to save a state to a bucket: by Orbax, and by a local checkpoint that is copied.

python benchmarks/bucket_checkpoints.py [--mib=64] # needs the extra emulators

The bucket is in an emulator of Google Cloud Storage on this machine. `blocked` is for how long
training waits; the rest happens while it goes on.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest

from tests import emulators

SAVES, ARRAYS = 5, 16


@contextlib.contextmanager
def timed(way: str, number: int) -> Iterator[list[float]]:
  """Prints how long the block takes; it puts the time when training goes on in the list."""
  began, used, blocked = time.perf_counter(), time.process_time(), []
  yield blocked
  print(
    f'{way}, save {number}: blocked {blocked[0] - began:.2f} s, in all '
    f'{time.perf_counter() - began:.2f} s, processor {time.process_time() - used:.2f} s'
  )


def measure(bucket: str, mib: int) -> None:
  """Saves a state of this size in both ways."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from etils import epath
  from orbax.checkpoint import v1 as orbax

  from nlhf_jax.storage import store
  from nlhf_jax.structs import TrainState
  from nlhf_jax.training.checkpoints import Checkpoints

  random, size = np.random.default_rng(0), mib * 2**18 // ARRAYS
  params = {str(number): jnp.array(random.random(size, np.float32)) for number in range(ARRAYS)}
  state = TrainState(jnp.int32(0), {'policy': params}, (), {}, nonfinite=jnp.int32(0))
  jax.block_until_ready(params)
  kept = orbax.training.preservation_policies.LatestN(2)
  place = epath.Path(f'{bucket}/orbax')
  with orbax.training.Checkpointer(place, preservation_policy=kept) as checkpointer:
    for number in range(1, SAVES + 1):
      with timed('Orbax to the bucket', number) as blocked:
        saved = checkpointer.save_async(number, state._replace(fixed={}, nonfinite=None))
        blocked.append(time.perf_counter())
        saved.result()
  with (
    tempfile.TemporaryDirectory() as place,
    store.mirrored(f'{bucket}/copied', Path(place), Path(place) / 'stages'),
  ):
    for number in range(1, SAVES + 1):
      checkpoints = Checkpoints(Path(place) / 'stages' / 'sft' / 'checkpoints')
      with timed('local and copied', number) as blocked:
        checkpoints.save(state._replace(step=jnp.int32(number)))
        blocked.append(time.perf_counter())
        checkpoints.close()


def main() -> None:
  """Runs the emulator, and measures."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--mib', type=int, default=64, help='size of the state')
  mib = parser.parse_args().mib
  with emulators.run_google() as environment, pytest.MonkeyPatch.context() as patch:
    measure(emulators.make_google_bucket(environment, patch), mib)


if __name__ == '__main__':
  main()
