"""Figures as inline SVG, in colours that follow the light or dark scheme of the page."""

import io
import re
from collections.abc import Iterator
from typing import NamedTuple
from xml.etree import ElementTree

import matplotlib
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from nlhf_jax.reporting.game_plots import COLOURS, CURVE, GREY, INK, PALE

# Colours of figures -> variables of the style sheet.
_VARIABLES = {
  **{colour: f'--line-{number}' for number, colour in enumerate(COLOURS)},
  GREY: '--muted',
  PALE: '--line',
  '#ffffff': '--ground',
  INK: '--ink',
  '#000000': '--ink',
}
_DASHES = {'-': '', '--': '6 3', ':': '1.5 2.5', '-.': '6 2 1.5 2'}
NARROW = 3.9  # inches
_SPACE = re.compile(r'\{[^}]*\}')


class Key(NamedTuple):
  """An entry of a legend: its label, its colour as CSS, and the lengths of its dashes, if any."""

  label: str
  colour: str
  dashes: str


def render_narrow(figure: Figure, name: str) -> tuple[str, list[Key]]:
  """A figure with one set of axes, so narrow that a telephone shows it, and its legend apart.

  Any other figure keeps its size and its legend. The figure is left as it is.
  """
  if len(figure.axes) != 1 or not figure.legends:
    return render(figure, name), []
  size = figure.get_size_inches().copy()
  legends = figure.legends
  keys = [key for legend in legends for key in _keys(legend)]
  try:
    # The height of bars is that of the numbers beside them.
    fixed = figure.axes[0].containers or size[1] > size[0]
    figure.set_size_inches(NARROW, size[1] if fixed else min(size[1], 0.72 * NARROW))
    figure.legends = []
    return render(figure, name), keys
  finally:
    figure.set_size_inches(size)
    figure.legends = legends


def _keys(legend: Legend) -> Iterator[Key]:
  for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
    is_line = isinstance(handle, Line2D)
    colour = to_hex(handle.get_color() if is_line else handle.get_facecolor())
    variable = _VARIABLES.get(colour)
    dashes = _DASHES.get(handle.get_linestyle(), '4 3') if is_line else ''
    label = text.get_text().replace(r'\$', '$')
    yield Key(label, f'var({variable})' if variable else colour, dashes)


def render(figure: Figure, name: str) -> str:
  """The figure as an `svg` element whose texts are text, and which names no address.

  Args:
    figure: is left as it is.
    name: begins every id, so that figures of one page do not share any.
  """
  drawn = io.BytesIO()
  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': name}):
    figure.savefig(drawn, format='svg', transparent=True, metadata={'Date': None})
  root = ElementTree.fromstring(drawn.getvalue())
  for parent in list(root.iter()):
    for child in list(parent):
      if _SPACE.sub('', str(child.tag)) in ('metadata', 'style'):
        parent.remove(child)
  for element in root.iter():
    _adapt(element, name)
  width, height = (float(root.attrib.pop(side).removesuffix('pt')) for side in ('width', 'height'))
  root.attrib |= {
    'class': 'plot',
    'role': 'img',
    'aria-label': f'Figure {name}',
    'style': f'--width: {width / 72:.2f}; aspect-ratio: {width:.0f} / {height:.0f}',
  }
  return ElementTree.tostring(root, encoding='unicode')


def _adapt(element: ElementTree.Element, name: str) -> None:
  """Drops the namespace of an element, makes its ids unique and its colours variables."""
  element.tag = _SPACE.sub('', element.tag)
  element.attrib = {
    _SPACE.sub('', key): value for key, value in element.attrib.items() if key != 'version'
  }
  own = element.attrib.get('id', '')
  if own.startswith(CURVE):
    element.attrib |= {'class': 'labelled', 'data-tip': own.removeprefix(CURVE)}
    del element.attrib['id']
  elif own:
    element.attrib['id'] = f'{name}-{own}'
  for key, value in element.attrib.items():
    if key == 'href' and value.startswith('#'):
      element.attrib[key] = f'#{name}-{value[1:]}'
    elif key == 'clip-path':
      element.attrib[key] = value.replace('url(#', f'url(#{name}-')
    elif key == 'style':
      element.attrib[key] = '; '.join(_declarations(value, element.tag))


def _declarations(style: str, tag: str) -> Iterator[str]:
  """The declarations of a style, with variables for colours; text without any is in ink."""
  found = [part.strip() for part in style.split(';') if part.strip()]
  for part in found:
    key, _, value = part.partition(':')
    value = value.strip()
    variable = _VARIABLES.get(value)
    yield f'{key}: var({variable})' if variable else f'{key}: {value}'
  if tag == 'text' and not any(part.startswith('fill:') for part in found):
    yield 'fill: var(--ink)'
