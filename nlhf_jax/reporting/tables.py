"""Tables, as the terminal and as pages show them, and pictures within pages."""

import base64
import html
from collections.abc import Sequence


def format_text(
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


def format_html(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
  """The same for a page, one that scrolls where it is too wide; the first column names the rows."""
  heads = ''.join(f'<th scope="col">{html.escape(name)}</th>' for name in ['', *columns])
  lines = [
    f'<tr><th scope="row">{html.escape(name)}</th>'
    + ''.join(f'<td>{html.escape(cell)}</td>' for cell in row)
    + '</tr>'
    for name, row in zip(rows, cells, strict=True)
  ]
  return (
    '<div class="scroll" tabindex="0" role="region" aria-label="table"><table><thead><tr>'
    f'{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
  )


def format_figure(name: str, picture: bytes, caption: str) -> str:
  """A PNG within a page, under which it says what it shows; `name` is that of its file too."""
  data = base64.b64encode(picture).decode()
  return (
    f'<figure id="{name}"><img src="data:image/png;base64,{data}" alt="Figure {name}">'
    f'<figcaption>{caption} <span class="file">{name}.png</span></figcaption></figure>'
  )
