"""Trackers: programs that plot the metrics of a stage while it trains, chosen by `--tracker`.

They determine no result. Each stage is a run of its own, named after its folder, so that a metric
has the same name in every run, and the curves of several stages are in one plot.
"""

import contextlib
import html
import importlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from nlhf_jax import distributed
from nlhf_jax.errors import UserError, first_line
from nlhf_jax.storage import json_lines

PROJECT = 'nlhf_jax'  # of Weights & Biases and trackio, unless WANDB_PROJECT names another

# A metric, a text, or the values of a histogram.
Value = int | float | str | np.ndarray


class Tracker(Protocol):
  """Where the values of one stage go."""

  def log(self, step: int, values: Mapping[str, Value]) -> None:
    """Takes the values after update `step`; steps increase, or repeat after a run was resumed."""


Open = Callable[[Path, int], contextlib.AbstractContextManager[Tracker]]


class _TensorBoard:
  """Writes events to a file of the stage's folder."""

  def __init__(self, writer: EventsWriter):
    self._writer = writer

  def log(self, step: int, values: Mapping[str, Value]) -> None:
    for name, value in values.items():
      if isinstance(value, str):
        made = summary.text(name, _indent(value))
      elif isinstance(value, np.ndarray):
        made = summary.histogram(name, value, 'auto')
      else:
        made = summary.scalar(name, value)
      self.add(Event(step=step, summary=made))
    self._writer.flush()

  def add(self, event: Event) -> None:
    """Writes an event, now."""
    event.wall_time = time.time()
    self._writer.write_event(event)


@contextlib.contextmanager
def open_tensorboard(folder: Path, first: int) -> Iterator[Tracker]:
  """TensorBoard's events, in `folder`; those after step `first` of a run before are left out."""
  # Written at once: the writer with a thread of its own waits for ever on a full disk.
  with contextlib.closing(EventsWriter(str(folder / 'events'))) as writer:
    tracker = _TensorBoard(writer)
    tracker.add(Event(step=first + 1, session_log=SessionLog(status=SessionLog.START)))
    yield tracker


class _Run:
  """Logs to a run of Weights & Biases or trackio, which resemble each other."""

  def __init__(self, run: Any, show_text: Callable[[str], Any], histogram: Callable):
    self._run, self._show_text, self._histogram = run, show_text, histogram

  def log(self, step: int, values: Mapping[str, Value]) -> None:
    shown = {}
    for name, value in values.items():
      if isinstance(value, str):
        shown[name] = self._show_text(value)
      elif isinstance(value, np.ndarray):
        shown[name] = self._histogram(value)
      else:
        shown[name] = value
    self._run.log(shown, step=step)


@contextlib.contextmanager
def open_wandb(folder: Path, first: int) -> Iterator[Tracker]:
  """A run of Weights & Biases, which ignores the steps that it has already."""
  del first
  wandb = importlib.import_module('wandb')
  run = wandb.init(
    project=os.environ.get('WANDB_PROJECT', PROJECT),
    id=folder.name,
    name=folder.name,
    dir=folder,
    config=read_settings(folder),
    resume='allow',
  )
  try:
    show_text = lambda text: wandb.Html(f'<pre>{html.escape(text)}</pre>')
    yield _Run(run, show_text, wandb.Histogram)
  finally:
    run.finish()


@contextlib.contextmanager
def open_trackio(folder: Path, first: int) -> Iterator[Tracker]:
  """A run of trackio."""
  del first
  trackio = importlib.import_module('trackio')
  project = os.environ.get('WANDB_PROJECT', PROJECT)
  run = trackio.init(
    project=project, name=folder.name, config=read_settings(folder), resume='allow', embed=False
  )
  try:
    yield _Run(run, lambda text: trackio.Markdown(_indent(text)), trackio.Histogram)
  finally:
    trackio.finish()


TRACKERS: dict[str, Open | None] = {
  'none': None,
  'tensorboard': open_tensorboard,
  'wandb': open_wandb,
  'trackio': open_trackio,
}
DEFAULT = 'tensorboard'
_chosen = ContextVar('tracker', default=DEFAULT)


@contextlib.contextmanager
def chosen(name: str) -> Iterator[None]:
  """Within this context, stages are tracked by the tracker of that name.

  Raises:
    UserError: if there is none, or its package is missing.
  """
  if name not in TRACKERS:
    raise UserError(f"--tracker='{name}' must be one of {', '.join(TRACKERS)}.")
  if name not in ('none', DEFAULT):
    try:
      importlib.import_module(name)
    except ImportError as error:
      raise UserError(
        f'--tracker={name}: its package cannot be imported ({first_line(error)}); install it with '
        f"pip install '.[{name}]' in a checkout, or choose --tracker=tensorboard."
      ) from None
  token = _chosen.set(name)
  try:
    yield
  finally:
    _chosen.reset(token)


class SafeTracker:
  """The chosen tracker of a stage. If it fails, that is printed, and the stage goes on without it.

  Only the first of several processes tracks.
  """

  def __init__(self, folder: Path, first: int):
    self._name, self._open = _chosen.get(), contextlib.ExitStack()
    self._tracker: Tracker | None = None
    make = TRACKERS[self._name] if distributed.is_first() else None
    if make:
      with self._going_on():
        self._tracker = self._open.enter_context(make(folder, first))

  def log(self, step: int, values: Mapping[str, Value]) -> None:
    """Logs the values, unless the tracker has failed before."""
    if self._tracker:
      with self._going_on():
        self._tracker.log(step, values)

  def close(self) -> None:
    """Ends the tracker's run."""
    with self._going_on():
      self._open.close()

  @contextlib.contextmanager
  def _going_on(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # whatever a service or its client raises
      self._tracker = None
      reason = first_line(error) or type(error).__name__
      print(f'--tracker={self._name} failed ({reason}); training goes on without it.', flush=True)


def read_settings(folder: Path) -> dict[str, Any]:
  """The settings that determine the stage of a folder; none, if they are not recorded."""
  with distributed.alone():  # the first process tracks, and the others do not read
    return (json_lines.read_sealed(folder / 'stage.json') or {}).get('settings', {})


def _indent(text: str) -> str:
  """The text as a block of code in Markdown, in which nothing of it is markup."""
  return '\n'.join(f'    {line}' for line in text.splitlines())
