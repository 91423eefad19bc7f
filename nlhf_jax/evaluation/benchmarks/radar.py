"""MT-Bench's scores by category, as a radar plot."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from nlhf_jax.errors import UserError
from nlhf_jax.reporting.game_plots import COLOURS, GREY, INK, LINES, PALE

# Clockwise from the top, similar categories next to each other; unknown ones follow.
ORDER = (
  'writing',
  'roleplay',
  'reasoning',
  'math',
  'coding',
  'extraction',
  'stem',
  'humanities',
)


def draw(scores: Mapping[str, Mapping[str, float]], title: str, most: float = 10) -> Figure:
  """A radar plot with one line per policy and one axis per category, from 0 to `most`.

  Args:
    scores: policy -> category -> mean score, such as `categories` of `mt_bench_scores.summarise`.
    title: of the figure.
    most: the maximum score.

  Raises:
    UserError: if there are fewer than three categories, or they differ between policies.
  """
  found = {name for row in scores.values() for name in row}
  names = [name for name in ORDER if name in found] + sorted(found - set(ORDER))
  for policy, row in scores.items():
    if len(names) < 3 or set(row) != found:
      raise UserError(
        f"'{policy}' has scores in {sorted(row)}; a radar plot needs three categories or "
        f'more, the same for all policies: {names}.'
      )
  # Placed by hand: layout engines ignore the labels around a polar plot.
  wide, high, beside, across = 5.6 + 0.085 * max(map(len, scores)), 4.6, 1.15, 3.3  # inches
  figure = Figure(figsize=(wide, high))
  place = (beside / wide, 0.45 / high, across / wide, across / high)
  axes = figure.add_axes(place, projection='polar')
  axes.set_theta_zero_location('N')
  axes.set_theta_direction(-1)
  angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
  closed = np.append(angles, angles[0])
  for number, (policy, row) in enumerate(scores.items()):
    colour = COLOURS[number % len(COLOURS)]
    line = LINES[number // len(COLOURS) % len(LINES)]
    values = [row[name] for name in (*names, names[0])]
    label = policy.replace('$', r'\$')
    axes.plot(closed, values, color=colour, linestyle=line, linewidth=1.8, label=label)
  axes.set_xticks(angles, names)
  axes.tick_params(axis='x', labelsize=9.5, labelcolor=INK, pad=2)
  for angle, label in zip(angles, axes.get_xticklabels(), strict=True):
    side = round(np.sin(angle), 6)
    label.set_horizontalalignment('center' if side == 0 else 'left' if side > 0 else 'right')
  rings = np.linspace(0, most, 6)[1:]
  axes.set_yticks(rings, [f'{ring:g}' for ring in rings])
  axes.tick_params(axis='y', labelsize=7.5, labelcolor=GREY, zorder=5)
  axes.set_rlabel_position(180 / len(names))  # between the first two axes
  axes.set_ylim(0, most)
  axes.grid(color=PALE, linewidth=0.8)
  axes.spines['polar'].set_color(PALE)
  figure.text(0.15 / wide, 1 - 0.2 / high, title, fontsize=11, color=INK, va='top')
  beside_plot = {'loc': 'center left', 'bbox_to_anchor': ((beside + across + 0.85) / wide, 0.5)}
  figure.legend(**beside_plot, frameon=False, fontsize=8.5, labelcolor=INK)
  return figure
