"""What a run shows in the terminal."""

from collections.abc import Sequence


def as_text(
  title: str, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]
) -> str:
  """A table for the terminal."""
  widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
  head = max(map(len, rows))
  lines = [
    f'  {name:<{head}}'
    + ''.join(f'  {cell:>{width}}' for cell, width in zip(row, widths, strict=True))
    for name, row in [('', columns), *zip(rows, cells, strict=True)]
  ]
  return '\n'.join([title, *lines])
