"""Several processes that run the same program: what each of them may do, and what they agree on.

All compute; the first one writes files and prints. Whatever decides what is computed next is asked
here, so that it has one answer. With a single process nothing is asked and nothing waits.
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
  """Joins the other processes: `auto` where JAX knows the cluster, else `HOST:PORT,COUNT,NUMBER`.

  Raises:
    UserError: if it is neither, or there are no others to join.
  """
  given = ()
  if cluster != 'auto':
    try:
      address, count, number = cluster.split(',')
      given = (address, int(count), int(number))
    except ValueError:
      raise UserError(
        f"--cluster='{cluster}' is neither auto nor HOST:PORT,COUNT,NUMBER, as 10.0.0.1:1234,4,0."
      ) from None
  try:
    jax.distributed.initialize(*given)
  except (ValueError, RuntimeError) as error:
    raise UserError(f"--cluster='{cluster}': {first_line(error)}.") from None
  if not is_first():
    os.environ['TQDM_DISABLE'] = '1'  # read as tqdm is imported, which is later
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 - it stays open to the end


def is_first() -> bool:
  """Whether this process is the one that writes and prints."""
  return jax.process_index() == 0


def broadcast_from_first(answer: bool) -> bool:
  """What the first process answers."""
  if jax.process_count() == 1:
    return answer
  return bool(multihost_utils.broadcast_one_to_all(np.asarray(answer)))


def any_process(answer: bool) -> bool:
  """Whether any process answers yes."""
  if jax.process_count() == 1:
    return answer
  return bool(np.any(multihost_utils.process_allgather(np.asarray(answer))))


def compute_on_first(work: Callable[[], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
  """The numbers that `work` gives in the first process, which alone does it, in float32 in all.

  With a single process they stay as they are.

  Raises:
    UserError, Interrupted: in all processes, if `work` does.
  """
  if jax.process_count() == 1:
    return work()
  said, problem = np.zeros(shape, np.float32), None
  if is_first():
    try:
      said = np.asarray(work(), np.float32)
    except (UserError, Interrupted) as error:
      problem = error
  kinds = (type(None), UserError, Interrupted)
  kind = int(multihost_utils.broadcast_one_to_all(np.asarray(kinds.index(type(problem)))))
  if kind:
    raise problem or kinds[kind]('what the first process does; see there')
  return np.asarray(multihost_utils.broadcast_one_to_all(said))


@contextlib.contextmanager
def first_process_only(place: str):
  """Inside, says whether to do what only the first process does; all leave together."""
  yield is_first()
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(place)


def fetch(tree: Any) -> Any:
  """Arrays as NumPy, whole in every process."""

  def whole(leaf):
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)

  return jax.tree.map(whole, tree)
