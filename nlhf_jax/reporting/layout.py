"""One layout for the pages of all kinds of experiments: sections of figures, matrices and tables.

All markup comes from templates that escape what they are given: names, prompts and responses are
untrusted text.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from nlhf_jax.reporting import provenance, svg
from nlhf_jax.reporting.glossary import GLOSSARY
from nlhf_jax.storage import json_lines

MAX_MATRIX = 60  # rows of a matrix whose cells can be pointed at; larger ones are pictures

_TEMPLATES = jinja2.Environment(
  loader=jinja2.PackageLoader('nlhf_jax', 'reporting/templates'),
  autoescape=True,
  keep_trailing_newline=True,
  trim_blocks=True,
  lstrip_blocks=True,
  undefined=jinja2.StrictUndefined,
)
# `tojson` escapes <, > and &, so that no response can end the element that holds the data.
_TEMPLATES.policies['json.dumps_kwargs'] = {'allow_nan': False, 'separators': (',', ':')}
_TEMPLATES.globals['glossary'] = GLOSSARY


class Section(NamedTuple):
  """A section of a page: its anchor, its heading, an introduction and its parts, in this order."""

  anchor: str
  heading: str
  lede: str | Markup
  parts: Sequence[Markup]


class Head(NamedTuple):
  """What a page begins with: the kind of report, the name, a summary, notes, and facts by name."""

  kind: str
  name: str
  lede: str | Markup
  notes: Sequence[str] = ()
  facts: Mapping[str, str] = {}


def write_page(
  path: Path, head: Head, sections: Sequence[Section], seconds: Mapping[str, float]
) -> None:
  """Writes a page.

  Args:
    path: the page; the config of the run is read from `config.json` beside it.
    head: its beginning.
    sections: in their order on the page.
    seconds: stage -> the seconds it took.
  """
  write_made(path, head, sections, provenance.describe(path.parent, seconds))


def write_made(path: Path, head: Head, sections: Sequence[Section], made: provenance.Made) -> None:
  """Writes a page; `made` says how."""
  page = render('sections.html', head=head, sections=sections, made=made)
  with json_lines.atomic_write(path) as draft:
    draft.write_text(page, encoding='utf-8')


def render(template: str, **content: Any) -> str:
  """A template with its content, which is escaped unless it is markup."""
  return _TEMPLATES.get_template(template).render(**content)


def markup(text: str, *values: object) -> Markup:
  """A text of this package with `{}` for values, which are escaped."""
  return Markup(text).format(*values)


def table(
  label: str,
  head: Sequence[str],
  rows: Sequence[Sequence[str]],
  groups: Sequence[tuple[str, int]] = (),
) -> Markup:
  """A folded table, whose first column stays in view when it scrolls.

  Args:
    label: what the table shows, which stays visible while it is folded.
    head: names of the columns, the first of which names the rows.
    rows: cells, with the name of the row first.
    groups: headings above `head`, with the number of columns of each.
  """
  return _part('table', label, head, rows, groups)


def figure(name: str, picture: Figure, caption: str, saved: bool = True) -> Markup:
  """A figure as SVG in the colours of the page, with its caption and, if saved, its file."""
  drawn, keys = svg.render_narrow(picture, name)
  return _part('figure', name, Markup(drawn), keys, caption, saved)


def matrix(data: Mapping[str, Any], name: str = '', caption: str = '') -> Markup:
  """A matrix of win rates and the graph of who beats whom, drawn in the browser.

  Args:
    data: `names` in the order of the rows, and `win_rate` [K, K]; if `graph` is false, the graph is
      left out.
    name: anchor, and the file of the figure without `.png`; empty if it is in no file.
    caption: of the figure.
  """
  return _part('matrix', json_lines.to_json(data), name, caption)


def example(prompt: str, responses: Mapping[str, str]) -> Markup:
  """A prompt, and responses to it by what they are examples of."""
  return _part('example', prompt, responses)


def side_by_side(pairs: Sequence[tuple[str, Sequence[tuple[str, Markup]]]]) -> Markup:
  """Prompts, each with responses by name beside one another, and a field that filters them."""
  return _part('side_by_side', pairs)


def sort_by_share(
  names: Sequence[str], win_rate: Sequence[Sequence[float]], shares: Sequence[float]
) -> dict[str, Any]:
  """The data of a matrix, sorted by the shares of a lottery and then by the mean win rate."""
  mean = [sum(row) / len(row) for row in win_rate]
  order = sorted(range(len(names)), key=lambda k: (-round(shares[k], 9), -mean[k]))
  return {
    'names': [names[k] for k in order],
    'win_rate': [[win_rate[i][j] for j in order] for i in order],
    'shares': [shares[k] for k in order],
  }


def _part(macro: str, *values: object) -> Markup:
  return getattr(_TEMPLATES.get_template('parts.html').module, macro)(*values)
