"""Tables for the terminal."""

from collections.abc import Sequence

from nlhf_jax.storage.texts import printable


def format_text(
  title: str, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]
) -> str:
  """A table for the terminal, with right-aligned cells; no text of it can control the terminal."""
  title, rows, columns = printable(title), [*map(printable, rows)], [*map(printable, columns)]
  cells = [[*map(printable, row)] for row in cells]
  widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
  head = max(map(len, rows))
  lines = [
    f'  {name:<{head}}'
    + ''.join(f'  {cell:>{width}}' for cell, width in zip(row, widths, strict=True))
    for name, row in [('', columns), *zip(rows, cells, strict=True)]
  ]
  return '\n'.join([title, *lines])
