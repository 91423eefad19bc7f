"""Tables for the terminal."""

import itertools
import shutil
import textwrap
from collections.abc import Sequence

from nlhf_jax.storage.texts import printable


def format_text(
  title: str, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]
) -> str:
  """A table for the terminal, with right-aligned cells; no text of it can control the terminal.

  Columns that do not fit beside the others stand below them, with the names of the rows again, so
  that the terminal breaks no line. A log has 80 columns.
  """
  title, rows, columns = printable(title), [*map(printable, rows)], [*map(printable, columns)]
  cells = [[*map(printable, row)] for row in cells]
  room = shutil.get_terminal_size().columns
  widths = [2 + max(map(len, column)) for column in zip(columns, *cells, strict=True)]
  head = 2 + max(map(len, rows))
  starts = [*_first_columns(widths, room - head), len(columns)]
  lines = [
    f'  {name}'.ljust(head)
    + ''.join(cell.rjust(width) for cell, width in zip(row[part], widths[part], strict=True))
    for part in itertools.starmap(slice, itertools.pairwise(starts))
    for name, row in [('', columns), *zip(rows, cells, strict=True)]
  ]
  return '\n'.join([*(textwrap.fill(line, room) for line in title.split('\n')), *lines])


def _first_columns(widths: Sequence[int], room: int) -> list[int]:
  """The first column of each block of columns that fit into `room` together, or alone do not."""
  starts, used = [0], 0
  for column, width in enumerate(widths):
    if used and used + width > room:
      starts.append(column)
      used = 0
    used += width
  return starts
