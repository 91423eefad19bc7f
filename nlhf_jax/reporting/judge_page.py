"""The report that compares judges: its figures, its tables and its page."""

from collections.abc import Iterator, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nlhf_jax.reporting import game_plots, layout
from nlhf_jax.reporting.layout import Head, Section

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


def draw(results: Mapping[str, Any]) -> dict[str, Figure]:
  """Name -> figure of a run."""
  judges, first = results['judges'], next(iter(results['sets']))
  figures = {'calibration': calibration(results['sets'][first])}
  if judges:
    figures = {'learning': learning(judges), 'loss': losses(results, first)} | figures
  if len({row['parameters'] for row in judges.values()}) > 1:
    figures['sizes'] = sizes(judges)
  return figures


def learning(judges: Mapping[str, Any]) -> Figure:
  """Training and held-out accuracy against training steps."""
  figure = Figure(figsize=(8, 4.4), layout='constrained')
  axes = game_plots.style_axes(figure.add_subplot(), 'Learning to judge')
  axes.set(xlabel='training steps', ylabel='accuracy')
  for (name, row), colour in zip(judges.items(), cycle(game_plots.COLOURS), strict=False):
    curve = row['curve']
    axes.plot(curve['at'], curve['train_accuracy'], color=colour, linewidth=0.8, alpha=0.6)
    gid = game_plots.name_curve(name, curve['accuracy'])
    line = {'color': colour, 'linewidth': 2, 'marker': 'o', 'gid': gid}
    axes.plot(curve['at'], curve['accuracy'], label=name, **line)
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
    gid = game_plots.name_curve(name, curve['log_loss'])
    line = {'color': colour, 'linewidth': 2, 'marker': 'o', 'gid': gid}
    axes.plot(curve['at'], curve['log_loss'], label=name, **line)
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


def write(
  path: Path,
  results: Mapping[str, Any],
  figures: Mapping[str, Figure],
  example: tuple[str, Mapping[str, str]] | None = None,
) -> None:
  """Writes the page to `path`.

  Args:
    path: of the page.
    results: contents of `results.json`.
    figures: by name.
    example: a prompt, and style -> a response to it, which describe the task.
  """
  seconds = {name: row['seconds'] for name, row in results['judges'].items()}
  sections = [*_figures(figures, example), *_tables(results)]
  layout.write_page(path, _head(results), sections, seconds)


def _head(results: Mapping[str, Any]) -> Head:
  lede = ' '.join(describe_judges(results['external_judges']))
  if results['judges']:
    trained = f'{len(results["judges"])} judges are trained on the same '
    lede = f'{trained}{results["comparisons"]:,} comparisons. {lede}'
  best = {
    f'Most accurate, {test}': max(metrics, key=lambda name: metrics[name]['accuracy'])
    for test, metrics in results['sets'].items()
  }
  return Head('Comparison of judges', results['name'], lede, (), best)


def _figures(
  figures: Mapping[str, Figure], example: tuple[str, Mapping[str, str]] | None
) -> Iterator[Section]:
  parts = [
    layout.figure(name, figures[name], caption)
    for name, caption in CAPTIONS.items()
    if name in figures
  ]
  lede = 'Point at a curve to see its name and its last value.'
  yield Section('figures', 'Figures', lede, parts)
  if example:
    lede = 'One prompt of the task, and one response of each style, which judges compare.'
    yield Section('task', 'The task', lede, [layout.example(*example)])


def _tables(results: Mapping[str, Any]) -> Iterator[Section]:
  for number, (test, metrics) in enumerate(results['sets'].items(), 1):
    lede = ' '.join([f'{count(metrics):,} comparisons.', *describe_unusable(metrics)])
    rows = [[name, *row] for name, row in zip(metrics, cells(metrics), strict=True)]
    table = layout.table(f'Table of {len(rows)} judges', ['judge', *HEADS], rows)
    yield Section(f'set-{number}', test.capitalize(), lede, [table])
  if results['transitivity']:
    lede = (
      'All responses to a prompt against each other: the share of triples in which each beats the '
      'next, the share of squared payoffs that no scores can represent, and how often one response '
      'beats all others.'
    )
    heads = ['judge', 'triples that are cycles', 'cyclic energy', 'Condorcet winners']
    rows = [
      [label, *(f'{row[name]:.3f}' for name in ('three_cycles', 'cyclic_energy', 'condorcet'))]
      for label, row in results['transitivity'].items()
    ]
    yield Section('cycles', 'Cycles', lede, [layout.table('Table of cycles', heads, rows)])
