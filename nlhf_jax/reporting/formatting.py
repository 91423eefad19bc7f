"""Tables for the terminal and for pages, and figures for pages."""

import base64
from collections.abc import Sequence

import jinja2

from nlhf_jax.storage.texts import printable

_TEMPLATES = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
_TABLE = _TEMPLATES.from_string("""\
<div class="scroll" tabindex="0" role="region" aria-label="table"><table><thead><tr>\
<th scope="col"></th>{% for name in columns %}<th scope="col">{{ name }}</th>{% endfor %}\
</tr></thead><tbody>\
{% for name, row in rows %}
<tr><th scope="row">{{ name }}</th>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>\
{% endfor %}
</tbody></table></div>""")
_FIGURE = _TEMPLATES.from_string("""\
<figure id="{{ name }}"><img src="data:image/png;base64,{{ data }}" alt="Figure {{ name }}">\
<figcaption>{{ caption | safe }} <span class="file">{{ name }}.png</span></figcaption></figure>""")


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


def format_html(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
  """A table for a page, as escaped HTML; it scrolls if it is too wide."""
  return _TABLE.render(columns=columns, rows=list(zip(rows, cells, strict=True)))


def format_figure(name: str, picture: bytes, caption: str) -> str:
  """A PNG with its caption, as HTML for a page.

  Args:
    name: of the figure, and of its file without `.png`.
    picture: the PNG.
    caption: HTML, which is not escaped.
  """
  return _FIGURE.render(name=name, data=base64.b64encode(picture).decode(), caption=caption)
