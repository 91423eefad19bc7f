"""The report that compares judges: its figures, its tables and its page."""

import html
from collections.abc import Iterable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nlhf_jax.reporting import formatting, game_page, game_plots
from nlhf_jax.storage import json_lines

HEADS = (
  'accuracy',
  '95 % interval',
  'log-loss',
  'Brier',
  'calibration error',
  'same in both orders',
  'first place',
  'for the longer',
  'people for the longer',
)
CAPTIONS = {
  'learning': 'Agreement with the majority of votes during training: on the training comparisons '
  '(thin, means over the batches since the point before) and on the held-out ones.',
  'loss': 'Log-loss on the held-out comparisons; a constant probability of 1/2 has ln 2.',
  'sizes': 'Agreement after training against the number of parameters of the network.',
  'calibration': 'How often the side that a judge prefers is voted for, by the confidence of the '
  'judge. The area of a mark is proportional to its number of comparisons.',
}


def draw(results: Mapping[str, Any]) -> dict[str, bytes]:
  """File name -> figure of a run, as PNG."""
  judges, first = results['judges'], next(iter(results['sets']))
  figures = {'calibration': calibration(results['sets'][first])}
  if judges:
    figures = {'learning': learning(judges), 'loss': losses(results, first)} | figures
  if len({row['parameters'] for row in judges.values()}) > 1:
    figures['sizes'] = sizes(judges)
  return {name: game_plots.render_png(figure) for name, figure in figures.items()}


def learning(judges: Mapping[str, Any]) -> Figure:
  """Training and held-out accuracy against training steps."""
  figure = Figure(figsize=(8, 4.4), layout='constrained')
  axes = game_plots.style_axes(figure.add_subplot(), 'Learning to judge')
  axes.set(xlabel='training steps', ylabel='accuracy')
  for (name, row), colour in zip(judges.items(), cycle(game_plots.COLOURS), strict=False):
    curve = row['curve']
    axes.plot(curve['at'], curve['train_accuracy'], color=colour, linewidth=0.8, alpha=0.6)
    axes.plot(curve['at'], curve['accuracy'], color=colour, linewidth=2, marker='o', label=name)
  axes.axhline(0.5, color=game_plots.INK, linewidth=0.9, linestyle=(0, (1, 2)))
  axes.grid(color=game_plots.PALE, linewidth=0.6)
  figure.legend(loc='outside right center', frameon=False, fontsize=9, labelcolor=game_plots.INK)
  return figure


def losses(results: Mapping[str, Any], test: str) -> Figure:
  """Held-out log-loss against training steps; judges that are not trained are horizontal lines."""
  figure = Figure(figsize=(8, 4.4), layout='constrained')
  axes = game_plots.style_axes(figure.add_subplot(), f'Log-loss, {test}')
  axes.set(xlabel='training steps', ylabel='log-loss, nats a comparison')
  for (name, row), colour in zip(
    results['judges'].items(), cycle(game_plots.COLOURS), strict=False
  ):
    curve = row['curve']
    axes.plot(curve['at'], curve['log_loss'], color=colour, linewidth=2, marker='o', label=name)
  constant = [name for name in results['sets'][test] if name not in results['judges']]
  for name, line in zip(constant, cycle(('--', ':', '-.')), strict=False):
    loss = results['sets'][test][name]['log_loss']
    axes.axhline(loss, color=game_plots.GREY, linewidth=1.2, linestyle=line, label=name)
  axes.grid(color=game_plots.PALE, linewidth=0.6)
  figure.legend(loc='outside right center', frameon=False, fontsize=9, labelcolor=game_plots.INK)
  return figure


def sizes(judges: Mapping[str, Any]) -> Figure:
  """Final training and held-out accuracy against the number of parameters."""
  figure = Figure(figsize=(6.4, 4.2), layout='constrained')
  axes = game_plots.style_axes(figure.add_subplot(), 'Size')
  axes.set(xscale='log', xlabel='parameters', ylabel='accuracy')
  for kind, colour in zip(
    sorted({row['network'] for row in judges.values()}), game_plots.COLOURS, strict=False
  ):
    rows = [row for row in judges.values() if row['network'] == kind]
    rows.sort(key=lambda row: row['parameters'])
    at = [row['parameters'] for row in rows]
    for name, style in (('accuracy', 'o-'), ('train_accuracy', 'o:')):
      last = [row['curve'][name][-1] for row in rows]
      label = kind if name == 'accuracy' else f'{kind}, in training'
      axes.plot(at, last, style, color=colour, label=label)
  counts = sorted({row['parameters'] for row in judges.values()})
  axes.set_xticks(counts, [f'{count:,}' for count in counts])
  axes.minorticks_off()
  axes.grid(color=game_plots.PALE, linewidth=0.6)
  figure.legend(loc='outside right center', frameon=False, fontsize=9, labelcolor=game_plots.INK)
  return figure


def calibration(metrics: Mapping[str, Any]) -> Figure:
  """Share of votes for the side that each judge prefers, by the judge's confidence."""
  figure = Figure(figsize=(6.4, 4.6), layout='constrained')
  axes = game_plots.style_axes(figure.add_subplot(), 'Calibration')
  axes.set(xlabel='probability given to the preferred side', ylabel='votes for it')
  axes.plot([0.5, 1], [0.5, 1], color=game_plots.INK, linewidth=0.9, linestyle=(0, (1, 2)))
  for (name, row), colour in zip(metrics.items(), cycle(game_plots.COLOURS), strict=False):
    bins = row['calibration']
    x, y = ([bin_[field] for bin_ in bins] for field in ('probability', 'votes'))
    areas = [200 * bin_['count'] / row['comparisons'] for bin_ in bins]
    axes.plot(x, y, color=colour, linewidth=1.4, label=name)
    axes.scatter(x, y, s=areas, color=colour, alpha=0.6)
  axes.grid(color=game_plots.PALE, linewidth=0.6)
  figure.legend(loc='outside right center', frameon=False, fontsize=9, labelcolor=game_plots.INK)
  return figure


def cells(metrics: Mapping[str, Any]) -> list[list[str]]:
  """One row with the columns of `HEADS` for each judge, on one set of comparisons."""
  return [
    [
      f'{row["accuracy"]:.3f}',
      '{:.3f} to {:.3f}'.format(*row['accuracy_interval']),
      f'{row["log_loss"]:.3f}',
      f'{row["brier"]:.3f}',
      f'{row["calibration_error"]:.3f}',
      f'{row["consistency"]:.3f}',
      f'{row["first_place"]:+.3f}',
      f'{row["longer"]:.3f}',
      f'{row["longer_votes"]:.3f}',
    ]
    for row in metrics.values()
  ]


def count(metrics: Mapping[str, Any]) -> int:
  """The number of comparisons in a set."""
  row = next(iter(metrics.values()))
  return row['comparisons'] + row['unusable']


def describe_unusable(metrics: Mapping[str, Any]) -> list[str]:
  """A sentence for each judge that has no usable verdict on some comparisons of a set."""
  return [
    f'{name} has no usable verdict on {row["unusable"]:,} of them, which its figures leave out.'
    for name, row in metrics.items()
    if row['unusable']
  ]


def describe_judges(usage: Mapping[str, Mapping]) -> list[str]:
  """Sentences for each external judge: what it is, its counts, why it last had no verdict."""

  def describe(what, count):
    return f'{f"{count:,}" if isinstance(count, int) else f"{count:,.4f}"} {what.replace("_", " ")}'

  sentences = []
  for name, row in usage.items():
    counts = ', '.join(describe(*pair) for pair in row['counts'].items())
    sentences.append(f'The {name} judge is {row["about"]}' + (f': {counts}.' if counts else '.'))
    if row.get('last_failure'):
      sentences.append(f'It last had no usable verdict because of: {row["last_failure"]}.')
  return sentences


def write(path: Path, results: Mapping[str, Any], figures: Mapping[str, bytes]) -> None:
  """Writes the page to `path` from the contents of `results.json` and the figures."""
  content = [*_content(results), *game_page.render_figures(figures, CAPTIONS)]
  with json_lines.atomic_write(path) as draft:
    game_page.write_page(draft, results['name'], content)


def _content(results: Mapping[str, Any]) -> Iterable[str]:
  yield f'<h1>{html.escape(results["name"])}</h1><p class="lede">'
  if results['judges']:
    yield f'{len(results["judges"])} judges are trained on the same '
    yield f'{results["comparisons"]:,} comparisons. '
  yield html.escape(' '.join(describe_judges(results['external_judges'])))
  yield '</p>'
  for test, metrics in results['sets'].items():
    yield f'<h2>{html.escape(test)}</h2><p>{count(metrics):,} comparisons. Log-loss in nats. '
    yield '&ldquo;First place&rdquo; is what being shown first adds to the probability of a '
    yield 'response; the last columns are how often the judge and people prefer the longer '
    yield 'response.</p>'
    yield formatting.format_html(list(metrics), HEADS, cells(metrics))
    yield from (f'<p>{html.escape(sentence)}</p>' for sentence in describe_unusable(metrics))
  if results['transitivity']:
    yield '<h2>Cycles</h2><p>All responses to a prompt against each other: the share of triples in '
    yield 'which each beats the next, the share of squared payoffs that no scores can represent, '
    yield 'and how often one response beats all others.</p>'
    heads = ['triples that are cycles', 'cyclic energy', 'Condorcet winners']
    rows = [
      [f'{row[name]:.3f}' for name in ('three_cycles', 'cyclic_energy', 'condorcet')]
      for row in results['transitivity'].values()
    ]
    yield formatting.format_html(list(results['transitivity']), heads, rows)
