"""Several processes that run the same program: which one writes, and what they agree on.

All processes compute; only the first one writes files and prints. What it reads from the files of
the run, and decisions about what to compute next, are exchanged here, so that all processes go on
from the same, whether or not they share a file system. A single process exchanges nothing and never
waits.
"""

import contextlib
import ctypes
import itertools
import json
import os
import secrets
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from nlhf_jax.errors import Interrupted, UserError, first_line

PART = 1 << 26  # bytes of an array that are sent at once, of which devices hold a few copies
START_SECONDS = 60  # within which all processes must have started
HEARTBEAT_SECONDS = 10  # without a sign of life, after which a process counts as lost
RESUME_STATUS = 75  # exit status that means: start all again, and they resume (EX_TEMPFAIL)
LOST = (
  'error: another process of this run ended or cannot be reached (its own message says why, if it '
  'could print one); start all of them again, and they resume from what was saved.'
)
NOT_STARTED = (
  f'error: --cluster: not all processes of this run started within {START_SECONDS} s; start each '
  'with its own number, and all with the same address and count.'
)
# What errors of collectives contain if another process is gone. A collective on a GPU waits instead
# until the heartbeat is missed.
_LOST_SIGNS = ('gloo', 'nccl', 'coordination service', 'coordination agent', 'barrier')

# JAX's own name for the message that a process got SIGTERM, which has no public reader.
_STOP_NOTICE = 'RECEIVED_PREEMPTION_NOTICE'

# Of each process, the first one that works in the same folders; empty where all do in those of
# process 0.
_writers: list[int] = []
_stop_questions = itertools.count(1)  # one count for the whole program
_thread = threading.local()
_before_abort = [NOT_STARTED]  # what to print if JAX aborts this process


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
  _exit_on_abort()
  try:
    jax.distributed.initialize(
      *arguments,
      initialization_timeout=START_SECONDS,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except (ValueError, RuntimeError) as error:
    raise UserError(f"--cluster='{cluster}': {first_line(error)}.") from None
  _before_abort[0] = LOST
  if not is_first():
    os.environ['TQDM_DISABLE'] = '1'  # before tqdm is imported, which reads it
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 - stays open until the process ends


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(number: int) -> None:
  os.write(2, f'{_before_abort[0]}\n'.encode())
  os._exit(RESUME_STATUS)


def _exit_on_abort() -> None:
  """Replaces the abort with which JAX ends a process that lost the others by a sentence.

  A handler of Python's module `signal` would never run, because the abort comes from another
  thread, which does not return to the interpreter.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
  libc.signal(signal.SIGABRT, ctypes.cast(_on_abort, ctypes.c_void_p))


@contextlib.contextmanager
def joined(cluster: str) -> Iterator[None]:
  """Joins the other processes; within this context, an error in any of them ends them all.

  A process that fails exits at once, without waiting for the others, which notice within
  `HEARTBEAT_SECONDS` and exit with `RESUME_STATUS`. Only `Interrupted`, on which all processes
  agree, leaves the context.

  Raises:
    UserError: if the other processes cannot be joined.
    Interrupted: in all processes.
  """
  join(cluster)
  try:
    try:
      yield
    except Interrupted:
      _wait_for_all('the stop')
      raise
    _wait_for_all('the end')  # or those that are done would wait for too short a time at exit
  except Interrupted:
    raise
  except BaseException as error:
    _exit(error)


def _exit(error: BaseException) -> NoReturn:
  """Prints what ended this process, and exits without waiting for the other processes."""
  text = str(error).lower()
  if isinstance(error, UserError):
    message, status = f'error: {error}', 2
  elif isinstance(error, KeyboardInterrupt):
    message, status = 'error: interrupted; run the same command again to resume.', 130
  elif any(sign in text for sign in _LOST_SIGNS):
    message, status = LOST, RESUME_STATUS
  else:
    message, status = ''.join(traceback.format_exception(error)).rstrip('\n'), 1
  sys.stdout.flush()
  print(message, file=sys.stderr, flush=True)
  os._exit(status)


def _leave_the_others_out() -> None:
  """Raises the error that is being handled, if there is one that the other processes lack.

  They are elsewhere in the program, and would never take part in what this one is about to wait
  for, such as the last write of a block that an error ends.
  """
  error = sys.exception()
  if error is not None and not isinstance(error, Interrupted):
    raise error


def _wait_for_all(place: str) -> None:
  if jax.process_count() > 1:
    _leave_the_others_out()
    multihost_utils.sync_global_devices(place)


def _gather(value: Any) -> np.ndarray:
  """The arrays of all processes, in their order."""
  _leave_the_others_out()
  return np.asarray(multihost_utils.process_allgather(np.asarray(value)))


def _broadcast(value: Any) -> np.ndarray:
  """The first process's array."""
  _leave_the_others_out()
  return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def check_alike(config_digest: str, folders: Sequence[Path], may_differ: bool) -> None:
  """Checks that all processes have the same config, and which of them see the same files.

  Args:
    config_digest: at most 8 bytes in hexadecimal digits.
    folders: are made if need be.
    may_differ: whether each machine may have folders of its own.

  Raises:
    UserError: in all processes, if one has another config than the first, or other files and
      must not.
  """
  _writers.clear()
  if jax.process_count() == 1:
    return
  require_same(config_digest, 'another config than', 'the same flags')
  found = []
  for folder in folders:
    found.append(_find_writers(folder))
    remedy = (
      'the same --workdir and --stages, on a file system that all of them share; or add --store, '
      'with which each machine may have its own'
    )
    _require((found[-1] == 0) | may_differ, f"other files in '{folder}' than", remedy)
  both = '--workdir and --stages on the same file system'
  _require(np.all(np.equal(found, found[0]), axis=0), 'folders on other machines than', both)
  if found[0].any():
    _writers.extend(found[0].tolist())


def _find_writers(folder: Path) -> np.ndarray:
  """Of each process, the first one that sees the same files in this folder."""
  name = f'.started-{int(_broadcast(np.uint32(secrets.randbits(32))))}'
  folder.mkdir(parents=True, exist_ok=True)
  mark = folder / f'{name}-{jax.process_index()}'
  mark.touch()
  _wait_for_all('the mark')
  first = min(
    number for number in range(jax.process_count()) if (folder / f'{name}-{number}').exists()
  )
  writers = _gather(np.uint32(first))
  mark.unlink()
  return writers


def require_same(digest: str, difference: str, remedy: str) -> None:
  """Checks that all processes have the same digest, at most 8 bytes in hexadecimal digits.

  Raises:
    UserError: in all processes, if one differs from the first.
  """
  if jax.process_count() > 1:
    digests = _gather(np.frombuffer(bytes.fromhex(digest).ljust(8), np.uint32))
    _require(np.all(digests == digests[0], axis=1), difference, remedy)


def _require(alike: np.ndarray, difference: str, remedy: str) -> None:
  """Raises a UserError that names the first process that is not like process 0."""
  if not alike.all():
    raise UserError(
      f'process {int(np.argmin(alike))} has {difference} process 0; start all with {remedy}.'
    )


def is_first() -> bool:
  """Whether this process writes and prints."""
  return jax.process_index() == 0


def has_own_folders() -> bool:
  """Whether some processes of the run have other folders than the first one."""
  return bool(_writers)


def is_first_here() -> bool:
  """Whether this process is the first one of those that see the same files."""
  return jax.process_index() == (_writers[jax.process_index()] if _writers else 0)


def broadcast_from_first(answer: bool) -> bool:
  """The first process's answer, in all processes."""
  if jax.process_count() == 1:
    return answer
  return bool(_broadcast(answer))


def any_process(answer: bool) -> bool:
  """Whether the answer of any process is true; the same in all processes."""
  if jax.process_count() == 1:
    return answer
  return bool(_gather(answer).any())


def compute_on_first(work: Callable[[], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
  """Runs `work` in the first process only, and returns its numbers in all, as float64.

  A single process, and a thread that is `alone`, return them unchanged.

  Args:
    work: computes an array.
    shape: of that array.

  Raises:
    UserError, Interrupted: in all processes, if `work` raises one.
  """
  if jax.process_count() == 1 or getattr(_thread, 'alone', False):
    return work()
  result, problem = np.zeros(shape), None
  if is_first():
    try:
      result = np.asarray(work(), np.float64)
    except (UserError, Interrupted) as error:
      problem = error
  kinds = (type(None), UserError, Interrupted)
  kind = int(_broadcast(kinds.index(type(problem))))
  if kind:
    raise problem or kinds[kind]('the first process stopped; its message says why')
  bits = _broadcast(np.frombuffer(result.tobytes(), np.uint32))  # JAX would round the numbers
  return np.frombuffer(bits.tobytes()).reshape(shape)


def value_from_first(work: Callable[[], Any]) -> Any:
  """Runs `work` in the first process only, and returns its value in all.

  Args:
    work: computes a value that JSON can hold; such as what a file holds.

  Raises:
    UserError, Interrupted: in all processes, if `work` raises one.
  """
  if jax.process_count() == 1 or getattr(_thread, 'alone', False):
    return work()
  text = b''

  def count():
    nonlocal text
    text = json.dumps(work()).encode()
    return np.array(len(text))

  size = int(compute_on_first(count, ()))
  padded = np.zeros(1 << (size - 1).bit_length(), np.uint8)  # few lengths, which are compiled
  padded[: len(text)] = np.frombuffer(text, np.uint8)
  return json.loads(_broadcast(padded)[:size].tobytes())


def send_from_first(value: np.ndarray) -> np.ndarray:
  """The first process's array, of which the others know shape and type, with the same bits."""
  if jax.process_count() == 1 or not value.size:
    return value
  bits = np.frombuffer(value.tobytes(), np.uint8)  # a sum would lose the sign of -0
  parts = [_broadcast(bits[start : start + PART]) for start in range(0, bits.size, PART)]
  return np.frombuffer(np.concatenate(parts).tobytes(), value.dtype).reshape(value.shape)


@contextlib.contextmanager
def alone() -> Iterator[None]:
  """Within this context, `compute_on_first` in this thread waits for no other process.

  For work in the background of the first process, at which the others are not.
  """
  _thread.alone = True
  try:
    yield
  finally:
    _thread.alone = False


def reached_stop() -> bool:
  """Whether all processes stop here, because one of them got SIGTERM.

  All must ask equally often. The answer is true once, at the same question in each; it takes tens
  of microseconds, and waits for no device.
  """
  return multihost_utils.reached_preemption_sync_point(next(_stop_questions))


def is_stop_announced() -> bool:
  """Whether a process of the run got SIGTERM, as far as this one knows; not alike in all.

  For one that works while the others wait for it, and cannot ask `reached_stop`.
  """
  # Imported here, as it is no public name, and nothing else needs it.
  from jax._src.distributed import global_state

  try:
    global_state.client.key_value_try_get(_STOP_NOTICE)
  except jax.errors.JaxRuntimeError:  # there is no such message
    return False
  return True


@contextlib.contextmanager
def first_process_only(place: str):
  """Yields whether this is the first process; at the end, waits until all processes are there.

  Args:
    place: a name for this point, the same in all processes; or a path, of which only the name of
      the file need be the same if machines have folders of their own.
  """
  yield is_first()
  _wait_for_all(Path(place).name if has_own_folders() else place)


def fetch(tree: Any) -> Any:
  """Converts arrays to NumPy; one spread over processes is gathered in each of them."""

  def whole(leaf):
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)

  return jax.tree.map(whole, tree)
