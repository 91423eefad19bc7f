"""The figures and the page of the exact language-model game."""

from collections.abc import Iterator, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from nlhf_jax.reporting import game_plots, layout
from nlhf_jax.reporting.layout import Head, Section

GAP = 'exploitability at τ, win probability'
CAPTIONS = {
  'exploitability': 'How much a best response would gain against the policy, with KL coefficient '
  'τ, during training: the mean over the prompts, computed from all responses. The first point is '
  'the reference.',
  'time': 'Exploitability against the seconds of training, including compilation, without '
  'measurements.',
  'tabular': 'Each method beside the solver of the same game without a network, samples or an '
  'optimiser. The updates of the solver, on the upper axis, are scaled to the steps of training: '
  'shapes can be compared, speeds cannot. The pale lines are the other methods.',
  'votes': 'Exploitability against the number of judged comparisons. A learner collects one vote a '
  'pair at the beginning of each round (one-shot learning, all of them before the first update), '
  'and plays against the preference estimated from all votes so far, which costs no votes; pairs '
  'that were never compared count as even. A method of the same name (broken line) queries the '
  'judge for every pair it plays and uses each probability once; a probability tells more than a '
  'vote.',
  'styles': 'Probability of each first symbol in response to the prompt on which the best response '
  'to the reference is the most exploitable.',
  'preferences': 'The game on that prompt. Responses are sorted by style, their first symbol: each '
  'style wins against one other and loses against another.',
}


def draw(results: Mapping[str, Any], payoff: np.ndarray) -> dict[str, Figure]:
  """The figures of a run, by name; `payoff` is that of the prompt that is shown."""
  methods, prompt = results['methods'], results['prompts'][results['shown']]
  shares = {'reference': results['reference'], 'equilibrium': results['equilibrium'], **methods}
  names = list(results['reference']['styles'])
  played = {
    label: [row['styles'][name][results['shown']] for name in names]
    for label, row in shares.items()
  }
  order = sort_by_style(results)
  sorted_names = [results['responses'][place] for place in order]
  learners = results['learners']
  return {
    'exploitability': draw_methods(methods, results['target'], 'at', 'training steps'),
    'time': draw_methods(methods, results['target'], 'seconds', 'seconds of training'),
    'tabular': draw_with_solvers(methods, results['target']),
    **({'votes': draw_votes(methods, learners, results['target'])} if learners else {}),
    'styles': game_plots.policy_bars(played, names, f'First symbols, prompt {prompt}'),
    'preferences': game_plots.payoff_heatmap(
      payoff[np.ix_(order, order)], sorted_names, f'Win rate of row over column, prompt {prompt}'
    ),
  }


def sort_by_style(results: Mapping[str, Any]) -> list[int]:
  """The places of the responses, sorted by their symbols, the first of which is the style."""
  return sorted(range(len(results['responses'])), key=results['responses'].__getitem__)


def draw_methods(methods: Mapping[str, Any], target: float, along: str, label: str) -> Figure:
  """Every method's gap against one of its columns, with `label` on the axis."""
  figure = Figure(figsize=(8, 4.6), layout='constrained')
  axes = game_plots.style_axes(figure.add_subplot(), 'A transformer on a token game')
  axes.set(xlabel=label, ylabel=GAP)
  handles = []
  for (name, row), colour in zip(methods.items(), cycle(game_plots.COLOURS), strict=False):
    line = {'color': colour, 'linewidth': 1.8, 'gid': game_plots.name_curve(name, row['gap'])}
    handles += axes.plot(row[along], row['gap'], label=name, **line)
  _rule(axes, target)
  axes.set_ylim(*_limits(methods, target))
  handles.sort(key=lambda line: -line.get_ydata()[-1])
  _legend(figure, handles)
  return figure


def draw_votes(methods: Mapping[str, Any], learners: Mapping[str, Any], target: float) -> Figure:
  """Gaps of learners by their votes, and of methods of the same names by their judged pairs."""
  figure = Figure(figsize=(8, 4.6), layout='constrained')
  axes = game_plots.style_axes(figure.add_subplot(), 'Gap by judged comparisons')
  axes.set(xlabel='judged comparisons', ylabel=GAP, xscale='log')
  handles = []
  for (name, row), colour in zip(learners.items(), cycle(game_plots.COLOURS), strict=False):
    line = {'color': colour, 'linewidth': 1.8}
    votes, gaps = row['judged'][1:], row['gap'][1:]  # a logarithmic axis cannot show the first, 0
    handles += axes.plot(votes, gaps, marker='o', markersize=3.5, label=f'{name}, by votes', **line)
    if name in methods:
      method = methods[name]
      line |= {'linewidth': 1.3, 'linestyle': '--', 'label': f'{name}, by probabilities'}
      handles += axes.plot(method['judged'][1:], method['gap'][1:], **line)
  _rule(axes, target)
  axes.set_ylim(
    *_limits(methods | {f'{name}, by votes': row for name, row in learners.items()}, target)
  )
  _legend(figure, handles)
  return figure


def draw_with_solvers(methods: Mapping[str, Any], target: float) -> Figure:
  """One panel a method, with its tabular solver on a second axis."""
  columns = min(3, len(methods))
  rows = -(-len(methods) // columns)
  figure = Figure(figsize=(3.4 * columns + 0.4, 3.1 * rows + 0.5), layout='constrained')
  grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
  panels = iter(grid.flat)
  colours = cycle(game_plots.COLOURS)
  for (label, row), axes, colour in zip(methods.items(), panels, colours, strict=False):
    game_plots.style_axes(axes, label)
    axes.set_xlabel('training steps')
    for other in methods.values():
      axes.plot(other['at'], other['gap'], color=game_plots.PALE, linewidth=1, zorder=1)
    axes.plot(row['at'], row['gap'], color=colour, linewidth=1.9, zorder=3)
    _rule(axes, target)
    solver = row['tabular']
    stretch = row['at'][-1] / solver['at'][-1]
    axes.plot(
      np.array(solver['at']) * stretch,
      np.maximum(solver['gap'], 1e-12),
      color=game_plots.INK,
      linestyle='--',
      linewidth=1.3,
      zorder=4,
    )
    above = axes.secondary_xaxis(
      'top', functions=(lambda x, by=stretch: x / by, lambda x, by=stretch: x * by)
    )
    above.set_xlabel(f'updates of {solver["solver"]}', fontsize=8.5, color=game_plots.GREY)
    above.tick_params(labelsize=7.5, labelcolor=game_plots.GREY, color=game_plots.GREY, length=2)
    above.spines['top'].set_visible(False)
    above.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_ylim(*_limits(methods, target))
    axes.set_xlim(-0.03 * row['at'][-1], 1.03 * row['at'][-1])
  for axes in panels:
    axes.remove()
  for axes in grid[:, 0]:
    axes.set_ylabel('exploitability at τ')
  lines = [
    Line2D([], [], color=game_plots.GREY, linewidth=1.9, label='transformer, sampled'),
    Line2D([], [], color=game_plots.INK, linewidth=1.3, linestyle='--', label='tabular, exact'),
  ]
  figure.legend(
    handles=lines,
    loc='outside lower center',
    ncols=2,
    frameon=False,
    fontsize=9,
    labelcolor=game_plots.INK,
  )
  return figure


def _limits(methods: Mapping[str, Any], target: float) -> tuple[float, float]:
  """Limits of the axis of gaps: those of training and the target, with some room."""
  gaps = [gap for row in methods.values() for gap in row['gap']]
  return min(target, *gaps) / 2, 1.5 * max(gaps)


def _legend(figure: Figure, handles: list[Line2D]) -> None:
  """Names the lines beside the figure."""
  figure.legend(
    handles=handles,
    loc='outside right center',
    frameon=False,
    fontsize=9,
    labelcolor=game_plots.INK,
  )


def _rule(axes: Axes, target: float) -> None:
  """A line at the target, and a grid."""
  axes.set_yscale('log')
  axes.grid(color=game_plots.PALE, linewidth=0.6)
  axes.axhline(target, color=game_plots.INK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=2)
  axes.text(
    0.01,
    target,
    f'{target:g}',
    transform=axes.get_yaxis_transform(),
    fontsize=8,
    color=game_plots.INK,
    ha='left',
    va='bottom',
  )


def columns(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
  """The table of a run: its heads, and one row of cells for each method."""
  heads = [
    'gap at start',
    'at end',
    'worst prompt',
    'KL to equilibrium',
    'KL to reference',
    'beats reference',
    'solved at step',
    'steps',
    'seconds',
    'tabular gap',
    'updates',
  ]
  cells = []
  for row in results['methods'].values():
    tabular = row['tabular']
    cells.append(
      [
        f'{row["gap"][0]:.4f}',
        f'{row["gap"][-1]:.4f}',
        f'{row["worst_gap"][-1]:.4f}',
        f'{row["kl"][-1]:.3f}',
        f'{row["kl_to_reference"][-1]:.3f}',
        f'{row["win_rate_against_reference"][-1]:.3f}',
        'never' if row['solved'] is None else f'{row["solved"]:,}',
        f'{row["at"][-1]:,}',
        f'{row["seconds"][-1]:.0f}',
        f'{tabular["gap"][-1]:.1e}',
        f'{tabular["updates"]:,}',
      ]
    )
  return heads, cells


def budgets(results: Mapping[str, Any]) -> tuple[list[str], list[str], list[list[str]]]:
  """The table of gaps at equal numbers of judged comparisons: its rows, heads and cells.

  Its columns are numbers at which a learner was measured: the last, and every second before it.
  """
  methods, learners = results['methods'], results['learners']
  numbers = sorted({number for row in learners.values() for number in row['judged'][1:]})
  numbers = numbers[::-2][::-1]
  rows = {f'{name}, by votes': row for name, row in learners.items()}
  rows |= {f'{name}, by probabilities': methods[name] for name in learners if name in methods}
  cells = []
  for row in rows.values():
    at = dict(zip(row['judged'], row['gap'], strict=True))
    cells.append([f'{at[number]:.4f}' if number in at else '' for number in numbers])
  return list(rows), [f'{number:,}' for number in numbers], cells


def write(
  path: Path, results: Mapping[str, Any], figures: Mapping[str, Figure], payoff: np.ndarray
) -> None:
  """Writes the page to `path`.

  Args:
    path: of the page.
    results: contents of `results.json`.
    figures: by name.
    payoff: of the prompt that is shown, [R, R].
  """
  parts = {
    name: layout.figure(name, figures[name], CAPTIONS[name]) for name in CAPTIONS if name in figures
  }
  lede = 'Point at a curve to see its name and its last value.'
  matrix = parts.pop('preferences')
  if len(payoff) <= layout.MAX_MATRIX:
    order = sort_by_style(results)
    data = {
      'names': [results['responses'][place] for place in order],
      'win_rate': (payoff[np.ix_(order, order)] + 0.5).tolist(),
      'graph': False,
    }
    matrix = layout.matrix(data, 'preferences', CAPTIONS['preferences'])
  styles = [parts.pop('styles'), matrix]
  sections = [
    Section('figures', 'Exploitability', lede, list(parts.values())),
    _describe_game(results, payoff, styles),
    _table(results),
    *_budgets(results),
  ]
  seconds = {label: row['seconds'][-1] for label, row in results['methods'].items()}
  layout.write_page(path, _head(results), sections, seconds)


def _head(results: Mapping[str, Any]) -> Head:
  methods, target = results['methods'], results['target']
  solved = [label for label, row in methods.items() if row['gap'][-1] < target]
  rest = [label for label in methods if label not in solved]
  lede = layout.markup(
    'A transformer learns to respond to {} prompts from samples of games. There are only {} '
    'responses to each, so that its distance from the equilibrium is computed rather than '
    'estimated. Exploitability below {} at the end: {}. Above: {}.',
    *(len(results['prompts']), len(results['responses']), f'{target:g}'),
    *(_list_names(solved), _list_names(rest)),
  )
  facts = {
    'τ, KL coefficient': f'{results["tau"]:g}',
    'gap of the reference': f'{results["reference"]["gap"]:.3f}',
    'of the best response to it': f'{results["reply"]["gap"]:.3f}',
    'of the equilibrium': f'{results["equilibrium"]["gap"]:.0e}',
    'its KL to the reference': f'{results["equilibrium"]["kl_to_reference"]:.2f} nats',
  }
  return Head('Token game', results['name'], lede, (), facts)


def _list_names(labels: list[str]) -> Markup:
  bold = [layout.markup('<b>{}</b>', label) for label in labels] or [Markup('none')]
  return Markup(' and ').join(filter(None, [Markup(', ').join(bold[:-1]), bold[-1]]))


def _describe_game(
  results: Mapping[str, Any], payoff: np.ndarray, figures: list[Markup]
) -> Section:
  """The prompt that is shown, with the response of each style that wins the most."""
  best: dict[str, int] = {}
  for place in np.argsort(-payoff.mean(axis=1), kind='stable').tolist():
    best.setdefault(results['responses'][place][0], place)
  places = [best[style] for style in sorted(best)]
  texts = [results['responses'][place] for place in places]
  prompt = results['prompts'][results['shown']]
  among = {'names': texts, 'win_rate': (payoff[np.ix_(places, places)] + 0.5).tolist()}
  lede = (
    'A prompt, and of each style (the first symbol) the response that wins the most against all '
    'others. The prompt is the one on which the best response to the reference is the most '
    'exploitable.'
  )
  example = layout.example(prompt, dict(zip(sorted(best), texts, strict=True)))
  return Section('game', 'The game', lede, [example, layout.matrix(among), *figures])


def _table(results: Mapping[str, Any]) -> Section:
  heads, cells = columns(results)
  lede = (
    'Gaps are exploitabilities, in win probability, with KL coefficient τ: means over the prompts, '
    'except in the column of the worst. KL is in nats. A method has solved the game at the first '
    f'evaluation after which its gap stays below {results["target"]:g}.'
  )
  rows = [[name, *row] for name, row in zip(results['methods'], cells, strict=True)]
  table = layout.table(f'Table of {len(rows)} methods', ['method', *heads], rows)
  return Section('methods', 'Methods', lede, [table])


def _budgets(results: Mapping[str, Any]) -> Iterator[Section]:
  if not results['learners']:
    return
  lede = (
    'Gaps by the number of judged comparisons. By votes: the preference is learned as well, from '
    'one vote a pair. By probabilities: as above, the judge gives a probability for every pair '
    'that is played; blank where the gap was not measured at that number.'
  )
  names, heads, cells = budgets(results)
  rows = [[name, *row] for name, row in zip(names, cells, strict=True)]
  table = layout.table('Table of gaps by comparisons', ['learner', *heads], rows)
  yield Section('judged', 'Judged comparisons', lede, [table])
