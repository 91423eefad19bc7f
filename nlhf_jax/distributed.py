"""Several processes that run the same program: which one writes, and what they agree on.

All processes compute; only the first one writes files and prints. Decisions about what to compute
next are exchanged here, so that all processes take the same one. A single process exchanges nothing
and never waits.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from nlhf_jax.errors import Interrupted, UserError, first_line


def join(cluster: str) -> None:
  """Joins the other processes of a run.

  Args:
    cluster: `auto` where JAX detects the cluster, else `HOST:PORT,COUNT,NUMBER`: address of the
      first process, number of processes, and number of this one, from 0.

  Raises:
    UserError: if `cluster` is neither, or the other processes cannot be joined.
  """
  arguments = ()
  if cluster != 'auto':
    try:
      address, count, number = cluster.split(',')
      arguments = (address, int(count), int(number))
    except ValueError:
      raise UserError(
        f"--cluster='{cluster}' is neither auto nor HOST:PORT,COUNT,NUMBER, as 10.0.0.1:1234,4,0."
      ) from None
  try:
    jax.distributed.initialize(*arguments)
  except (ValueError, RuntimeError) as error:
    raise UserError(f"--cluster='{cluster}': {first_line(error)}.") from None
  if not is_first():
    os.environ['TQDM_DISABLE'] = '1'  # before tqdm is imported, which reads it
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 - stays open until the process ends


def is_first() -> bool:
  """Whether this process writes and prints."""
  return jax.process_index() == 0


def broadcast_from_first(answer: bool) -> bool:
  """The first process's answer, in all processes."""
  if jax.process_count() == 1:
    return answer
  return bool(multihost_utils.broadcast_one_to_all(np.asarray(answer)))


def any_process(answer: bool) -> bool:
  """Whether the answer of any process is true; the same in all processes."""
  if jax.process_count() == 1:
    return answer
  return bool(np.any(multihost_utils.process_allgather(np.asarray(answer))))


def compute_on_first(work: Callable[[], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
  """Runs `work` in the first process only, and returns its numbers in all, as float32.

  A single process returns them unchanged.

  Args:
    work: computes an array.
    shape: of that array.

  Raises:
    UserError, Interrupted: in all processes, if `work` raises one.
  """
  if jax.process_count() == 1:
    return work()
  result, problem = np.zeros(shape, np.float32), None
  if is_first():
    try:
      result = np.asarray(work(), np.float32)
    except (UserError, Interrupted) as error:
      problem = error
  kinds = (type(None), UserError, Interrupted)
  kind = int(multihost_utils.broadcast_one_to_all(np.asarray(kinds.index(type(problem)))))
  if kind:
    raise problem or kinds[kind]('the first process stopped; its message says why')
  return np.asarray(multihost_utils.broadcast_one_to_all(result))


@contextlib.contextmanager
def first_process_only(place: str):
  """Yields whether this is the first process; at the end, waits until all processes are there.

  Args:
    place: a name for this point, the same in all processes.
  """
  yield is_first()
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(place)


def fetch(tree: Any) -> Any:
  """Converts arrays to NumPy; one spread over processes is gathered in each of them."""

  def whole(leaf):
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)

  return jax.tree.map(whole, tree)
