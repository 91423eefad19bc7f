"""Figures of matrix games: gaps, paths in the triangle, payoffs, policies.

Each function returns a new `matplotlib.figure.Figure` and does not use pyplot, so that it works
without a screen; save it with `figure.savefig(path, dpi=150)`. Colours follow the order of the
mapping, and can be told apart by colour-blind readers.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress, cycle, product
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import ArrayLike

from nlhf_jax.storage import json_lines

# Okabe and Ito's palette, without yellow, which is hard to see on white.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#222222', '#8c8c8c')
LINES = ('-', '--', ':')
MARKS = ('*', 'D', 's', 'P', 'X', '^')
INK, GREY, PALE = '#222222', '#6e6e6e', '#e4e4e4'
CURVE = 'curve: '  # begins the id of an artist that a page names when it is pointed at
CORNERS = np.array([[0, 0], [1, 0], [0.5, np.sqrt(3) / 2]])


def convergence(
  curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
  title: str,
  label: str,
  across: str = 'updates',
  floor: float = 1e-17,
  bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
  theory: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
) -> Figure:
  """Curves on two log axes, with a legend from the highest last value to the lowest.

  Update 0 is left out. Values below the floor, such as zeros and negative rounding errors, are
  drawn in a labelled band below it.

  Args:
    curves: name -> (updates [R], values [R]).
    title: of the figure.
    label: of the values, with their unit.
    across: label of the first axis.
    floor: the smallest value drawn at its position.
    bands: name -> (lower ends [R], upper ends [R]) of intervals around the values.
    theory: name -> (updates [R], values [R]) of a closed form, drawn as a dashed line in the colour
      of the curve; it may leave the frame.
  """
  figure = Figure(figsize=(7.2, max(4, 0.2 * len(curves))), layout='constrained')
  axes = style_axes(figure.add_subplot(), title)
  axes.set(xscale='log', yscale='log', xlabel=across, ylabel=label)
  handles, lowest, highest = [], 1.0, floor
  for (name, (x, y)), style in zip(curves.items(), _styles(), strict=False):
    x, y = np.asarray(x, float), np.asarray(y, float)
    seen = (x > 0) & np.isfinite(y)
    x, y = x[seen], np.maximum(y[seen], floor)
    marker = 'o' if len(x) <= 12 else None
    gid = name_curve(name, y)
    handles += axes.plot(x, y, label=name, marker=marker, markersize=3.5, gid=gid, **style)
    if bands and name in bands:
      low, high = (np.maximum(np.asarray(end, float)[seen], floor) for end in bands[name])
      axes.fill_between(x, low, high, color=style['color'], alpha=0.18, linewidth=0)
    if theory and name in theory:
      axes.plot(*theory[name], color=style['color'], linestyle='--', linewidth=1, zorder=1)
    lowest, highest = y.min(initial=lowest), y.max(initial=highest)
  axes.grid(color=PALE, linewidth=0.6)
  if lowest <= floor:
    axes.axhspan(floor / 10, floor, color=PALE, zorder=0)
    note = f'{floor:.0e} or less'.replace('e-0', 'e-')
    place = {'transform': axes.get_yaxis_transform(), 'va': 'center'}
    axes.text(0.01, floor / 3, note, fontsize=7.5, color=GREY, **place)
    lowest = floor / 10
  # Whole decades, so that there is always a tick label.
  axes.set_ylim(10 ** np.floor(np.log10(lowest)), 10 ** np.ceil(np.log10(1.01 * highest)))
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(LogLocator(numticks=9))
    axis.set_minor_locator(NullLocator())
  handles.sort(key=lambda line: -line.get_ydata()[-1] if len(line.get_ydata()) else np.inf)
  if theory:
    handles.append(Line2D([], [], color=GREY, linestyle='--', linewidth=1, label='closed form'))
  _legend(figure, handles, 'outside right center')
  return figure


def simplex(
  paths: Mapping[str, ArrayLike],
  names: Sequence[str],
  marks: Mapping[str, ArrayLike],
  title: str,
) -> Figure:
  """Paths of policies over three actions in the triangle, one triangle per path.

  The colour of a path darkens with time. Points are joined by straight lines, so paths should have
  every update.

  Args:
    paths: name -> probabilities, [R, 3].
    names: of the three actions, at the corners left, right and top.
    marks: label -> a policy to mark in every triangle, [3].
    title: of the figure.
  """
  columns = min(len(paths), 4)
  rows = -(-len(paths) // columns)
  width = max(2.5 * columns, 4.2)
  figure = Figure(figsize=(width, 2.4 * rows + 0.8), layout='constrained')
  figure.suptitle(title, fontsize=11, color=INK)
  panels = iter(figure.subplots(rows, columns, squeeze=False).flat)
  for (name, path), axes, style in zip(paths.items(), panels, _styles(), strict=False):
    colour = style['color']
    _triangle(axes, names)
    axes.set_title(name, fontsize=9.5, fontweight='bold', color=INK, pad=4)
    points = np.asarray(path, float) @ CORNERS
    segments = np.stack([points[:-1], points[1:]], axis=1)
    way = np.linalg.norm(points[1:] - points[:-1], axis=1).cumsum()
    fading = LinearSegmentedColormap.from_list(name, [_blend(colour, 0.25), colour])
    axes.add_collection(LineCollection(segments, array=way, cmap=fading, linewidth=1.2, zorder=2))
    for marker, place in zip(cycle(MARKS), marks.values(), strict=False):
      axes.plot(*np.asarray(place, float) @ CORNERS, zorder=4, **_mark(marker))
    axes.plot(*points[0], zorder=3, **_end('white', 9.0))
    axes.plot(*points[-1], zorder=5, **_end(colour, 5.0))
  for axes in panels:
    axes.remove()
  handles = [
    Line2D([], [], label='start', **_end('white', 9.0)),
    Line2D([], [], label='end', **_end(GREY, 5.0)),
  ]
  for marker, label in zip(cycle(MARKS), marks, strict=False):
    handles.append(Line2D([], [], label=label, **_mark(marker)))
  _legend(figure, handles, 'outside lower center', ncols=int(width / 1.4))
  return figure


def payoff_heatmap(payoff: ArrayLike, names: Sequence[str], title: str) -> Figure:
  """A heat map of win probabilities, row against column; with numbers for up to 12 actions.

  Payoffs above 1/2, which are no probabilities, are shown as they are, around 0.

  Args:
    payoff: [K, K].
    names: of the actions.
    title: of the figure.
  """
  payoff = np.asarray(payoff, float)
  actions, limit = len(payoff), abs(payoff).max(initial=1e-3)
  centre, label = (0.5, 'row beats column, probability') if limit <= 0.5 else (0.0, 'payoff of row')
  size = np.clip(0.45 * actions, 2.2, 7)
  small = np.clip(6.2 * size / actions * 7.5, 4.5, 9)
  longest = 0.65 / 72 * small * max(map(len, names))  # inches
  fits = longest < 0.95 * size / actions
  heading = 0.5 if fits else longest + 0.4
  figure = Figure(figsize=(size + longest + 1.3, size + heading), layout='constrained')
  axes = figure.add_subplot()
  shades = ListedColormap(_fade(colormaps['RdBu'](np.linspace(0.1, 0.9, 256))))
  image = axes.imshow(payoff + centre, cmap=shades, vmin=centre - limit, vmax=centre + limit)
  axes.set_title(title, fontsize=11, color=INK, loc='left', pad=8)
  axes.set_xticks(range(actions), _literal(names), rotation=0 if fits else 90)
  axes.set_yticks(range(actions), _literal(names))
  axes.tick_params(length=0, labelsize=small, labelcolor=INK, labeltop=True, labelbottom=False)
  axes.spines[:].set_visible(False)
  axes.set_xticks(np.arange(actions + 1) - 0.5, minor=True)
  axes.set_yticks(np.arange(actions + 1) - 0.5, minor=True)
  axes.grid(which='minor', color='white', linewidth=min(2, 12 / actions))
  axes.tick_params(which='minor', length=0)
  if actions <= 12:
    for i, j in product(range(actions), repeat=2):
      colour = 'white' if abs(payoff[i, j]) > 0.7 * limit else INK
      number = f'{payoff[i, j] + centre:.2f}'
      axes.text(j, i, number, color=colour, fontsize=8, ha='center', va='center')
  bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=18, pad=0.03)
  bar.set_label(label, fontsize=8.5, color=INK)
  bar.ax.tick_params(labelsize=8, length=2, color=GREY)
  bar.outline.set_visible(False)
  return figure


def policy_bars(
  policies: Mapping[str, ArrayLike], names: Sequence[str], title: str, threshold: float = 0.01
) -> Figure:
  """Policies side by side, one group of bars per action.

  Args:
    policies: name -> probabilities, [K].
    names: of the actions.
    title: of the figure.
    threshold: with more than 12 actions, those with at most this probability in every policy are
      summed in the last group.
  """
  table = np.stack([np.asarray(policy, float) for policy in policies.values()])
  kept = (table > threshold).any(axis=0) | (len(names) <= 12)
  names, rest = list(compress(names, kept)), table[:, ~kept].sum(axis=1, keepdims=True)
  if not kept.all():
    names.append(f'the other {(~kept).sum()}')
    table = np.hstack([table[:, kept], rest])
  count, actions = table.shape
  figure = Figure(figsize=(6.4, 1 + actions * (0.1 + 0.13 * count)), layout='constrained')
  axes = style_axes(figure.add_subplot(), title)
  thickness = 0.8 / count
  for i, (policy, row, style) in enumerate(zip(policies, table, _styles(), strict=False)):
    places = np.arange(actions) + (i - (count - 1) / 2) * thickness
    drawn = axes.barh(places, row, 0.9 * thickness, color=style['color'], label=policy)
    texts = ['0' if p == 0 else f'{p:.3f}' if p >= 5e-4 else '< 0.001' for p in row]
    axes.bar_label(drawn, texts, padding=2, fontsize=7, color=GREY)
  axes.set_yticks(range(actions), _literal(names))
  axes.set(xlim=(0, 1.12 * table.max()), ylim=(actions - 0.45, -0.55), xlabel='probability')
  axes.tick_params(axis='y', length=0)
  axes.spines['left'].set_visible(False)
  axes.grid(axis='x', color=PALE, linewidth=0.6)
  _legend(figure, axes.get_legend_handles_labels()[0], 'outside right upper')
  return figure


def policy_sweep(
  values: ArrayLike,
  policies: Mapping[str, ArrayLike],
  names: Sequence[str],
  title: str,
  across: str,
  log: bool = False,
) -> Figure:
  """Policies as a function of a number: stacked probabilities of the actions, one panel per method.

  Args:
    values: the number, [S], increasing.
    policies: method -> probabilities, [S, K].
    names: of the actions.
    title: of the figure.
    across: label of the number, with its unit.
    log: whether its axis is logarithmic.
  """
  values = np.asarray(values, float)
  figure = Figure(figsize=(1.4 + 2.6 * len(policies), 3), layout='constrained')
  figure.suptitle(title, fontsize=11, color=INK)
  panels = figure.subplots(1, len(policies), squeeze=False, sharey=True)[0]
  colours = [style['color'] for _, style in zip(names, _styles(), strict=False)]
  for axes, (method, table) in zip(panels, policies.items(), strict=True):
    style_axes(axes, method)
    areas = axes.stackplot(
      values, np.asarray(table, float).T, colors=colours, alpha=0.85, edgecolor='white', linewidth=1
    )
    axes.set(xlim=(values[0], values[-1]), ylim=(0, 1), xlabel=across)
    if log:
      axes.set_xscale('log')
  panels[0].set_ylabel('probability')
  figure.get_layout_engine().set(wspace=0.06)
  for area, name in zip(areas, _literal(names), strict=True):
    area.set_label(name)
  _legend(figure, areas[::-1], 'outside right center')
  return figure


def _styles() -> Iterator[dict]:
  """Line styles: colours solid, then dashed, then dotted; every second one thin, for overlaps."""
  for line, (i, colour) in cycle(product(LINES, enumerate(COLOURS))):
    yield {'color': colour, 'linestyle': line, 'linewidth': 1.2 if i % 2 else 2.1}


def style_axes(axes: Axes, title: str) -> Axes:
  """Gives axes a title, and removes the frame; returns them."""
  axes.set_title(title, fontsize=11, color=INK, loc='left', pad=8)
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color(GREY)
  axes.tick_params(length=3)
  axes.tick_params(which='both', labelsize=8.5, labelcolor=INK, color=GREY)
  for axis in (axes.xaxis, axes.yaxis):
    axis.label.set(fontsize=9.5, color=INK)
  axes.set_axisbelow(True)
  return axes


def _triangle(axes: Axes, names: Sequence[str]) -> None:
  for share in (0.25, 0.5, 0.75):
    for turn in range(3):
      ends = np.roll([[share, 1 - share, 0], [share, 0, 1 - share]], turn, axis=1) @ CORNERS
      axes.plot(*ends.T, color=PALE, linewidth=0.6, zorder=0)
  axes.add_patch(Polygon(CORNERS, fill=False, edgecolor=GREY, linewidth=0.9, zorder=1))
  middle = CORNERS.mean(axis=0)
  for corner, name, side in zip(CORNERS, _literal(names), ('right', 'left', 'center'), strict=True):
    x, y = middle + 1.06 * (corner - middle)
    side = 'center' if len(name) > 3 else side
    axes.text(x, y, name, fontsize=8.5, color=INK, ha=side, va='bottom' if y > 0.5 else 'top')
  axes.set(xlim=(-0.08, 1.08), ylim=(-0.12, 0.98), aspect='equal')
  axes.set_axis_off()


def _mark(marker: str) -> dict:
  size = 9 if marker == '*' else 5.5
  return {
    'marker': marker,
    'markersize': size,
    'color': INK,
    'markeredgecolor': 'white',
    'markeredgewidth': 0.6,
    'linestyle': '',
  }


def _end(colour: str, size: float) -> dict:
  return {
    'marker': 'o',
    'markersize': size,
    'color': colour,
    'markeredgecolor': INK,
    'markeredgewidth': 0.8,
    'linestyle': '',
  }


def _blend(colour: str, weight: float) -> tuple[float, ...]:
  """The colour mixed with white; `weight` 1 is the colour itself."""
  return LinearSegmentedColormap.from_list('', ['white', colour])(weight)


def _legend(figure: Figure, handles: Sequence, place: str, ncols: int = 1) -> None:
  figure.legend(
    handles=handles, loc=place, ncols=ncols, frameon=False, fontsize=8.5, labelcolor=INK
  )


def _literal(names: Sequence[str]) -> list[str]:
  """The names with escaped dollar signs, which would begin a formula."""
  return [name.replace('$', r'\$') for name in names]


def name_curve(name: str, values: Sequence | np.ndarray) -> str:
  """The id of a curve, with what a page shows when it is pointed at."""
  values = np.asarray(values, float)
  last = f', at the end {values[-1]:.3g}' if len(values) and np.isfinite(values[-1]) else ''
  return f'{CURVE}{name}{last}'


def _fade(colours: np.ndarray) -> np.ndarray:
  """Colours [N, RGBA] that look the same on white, as transparent as they can be."""
  alpha = 1 - colours[:, :3].min(axis=1, keepdims=True)
  clear = np.where(alpha > 0, 1 - (1 - colours[:, :3]) / np.maximum(alpha, 1e-9), 0)
  return np.hstack([clear, alpha])


def write_png(workdir: Path, figures: Mapping[str, Figure]) -> None:
  """Writes each figure to `NAME.png` in a folder."""
  for name, figure in figures.items():
    with json_lines.atomic_write(workdir / f'{name}.png') as draft:
      draft.write_bytes(render_png(figure))


def render_png(figure: Figure) -> bytes:
  """The figure as PNG at 150 dots per inch."""
  drawn = io.BytesIO()
  figure.savefig(drawn, format='png', dpi=150)
  return drawn.getvalue()
