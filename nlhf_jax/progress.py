"""Progress: a bar on a terminal, and one plain line per interval elsewhere, such as in a log."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping

from tqdm import tqdm

INTERVAL = 60.0  # seconds between two plain lines
WIDTH = 80  # columns of a plain line

# Metrics that are shown, most important first, with their names in a line.
SHOWN = {
  'win_rate_against_reference': 'win rate',
  'kl_to_reference': 'KL',
  'gap': 'gap',
  'held_out_nats_per_token': 'held-out nats',
  'held_out_accuracy': 'held-out accuracy',
  'held_out_log_loss': 'held-out log-loss',
  'loss': 'loss',
  'response_length': 'length',
  'unfinished': 'unfinished',
  'accuracy': 'accuracy',
}


def is_on_terminal() -> bool:
  """Whether progress is shown by bars."""
  return sys.stderr.isatty()


def format_metrics(metrics: Mapping[str, float], width: int) -> str:
  """The most important metrics that fit into `width` columns, such as 'win rate 0.53, KL 1.2'."""
  line = ''
  for wanted, label in SHOWN.items():
    found = [value for name, value in metrics.items() if name.partition('_by_')[0] == wanted]
    if found:
      longer = f'{line}{", " if line else ""}{label} {found[-1]:.3g}'
      if len(longer) > width:
        break
      line = longer
  return line


class Progress:
  """Progress of one piece of work, on standard error.

  On a terminal it is a bar. Elsewhere it is a plain line at most every `INTERVAL` seconds, and one
  at the end if `leave`; no line is longer than `WIDTH` columns, unless its label is.
  """

  def __init__(self, total: int | None, label: str, unit: str, done: int, delay: float, **show):
    self.done, self._total, self._label, self._unit = done, total, label, unit
    self._first, self._delay, self._leave, self._metrics = done, delay, show['leave'], {}
    self._began = self._printed = time.monotonic()
    # The variable is set in all processes but the first.
    hidden = show['hidden'] or bool(os.environ.get('TQDM_DISABLE'))
    self._plain = not hidden and not is_on_terminal()
    room = shutil.get_terminal_size()
    self._bar = tqdm(
      total=total,
      initial=done,
      desc=label,
      unit=unit,
      mininterval=0.5,
      delay=delay,
      leave=self._leave,
      ncols=room.columns - 1,
      nrows=room.lines,  # else no bar is shown on a terminal that does not tell its size
      disable=hidden or self._plain,
    )

  def update(self, count: int = 1) -> None:
    """Notes that so many more units are done."""
    self.done += count
    self._bar.update(count)
    if self._plain and time.monotonic() - self._printed >= INTERVAL:
      self._print()

  def set_label(self, label: str) -> None:
    """Names what is under way."""
    self._label = label
    self._bar.set_description(label)

  def set_metrics(self, metrics: Mapping[str, float]) -> None:
    """Shows the latest metrics; those of earlier calls stay until they are measured again."""
    self._metrics |= metrics
    self._bar.set_postfix_str(format_metrics(self._metrics, WIDTH // 2))

  def close(self, finished: bool) -> None:
    """Ends the bar; `finished` tells whether the work is done."""
    self._bar.close()
    slow = time.monotonic() - self._began >= self._delay
    if self._plain and self._leave and finished and slow and self.done > self._first:
      self._print()

  def _print(self) -> None:
    self._printed = time.monotonic()
    seconds = self._printed - self._began
    each = seconds / (self.done - self._first)
    count = self.done if self._total is None else f'{self.done} of {self._total}'
    line = f'{self._label}: {count} {self._unit}s, {seconds:.0f} s'
    line += f', {each:.2g} s each' if each >= 0.01 else ''
    metrics = format_metrics(self._metrics, WIDTH - len(line) - 2)
    sys.stdout.flush()  # the order of a log that has both
    print(f'{line}, {metrics}' if metrics else line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(
  total: int | None,
  label: str,
  unit: str,
  *,
  done: int = 0,
  delay: float = 0.0,
  leave: bool = True,
  hidden: bool = False,
) -> Iterator[Progress]:
  """Shows the progress of the block.

  Args:
    total: number of units of work; None if it is unknown.
    label: what is done.
    unit: the unit, in the singular.
    done: units that were done before.
    delay: seconds before a bar appears, and that work with a last line takes at least.
    leave: whether a bar stays, and a last line is printed, when the block ends.
    hidden: show nothing.
  """
  shown = Progress(total, label, unit, done, delay, leave=leave, hidden=hidden)
  finished = False
  try:
    yield shown
    finished = True
  finally:
    shown.close(finished)
