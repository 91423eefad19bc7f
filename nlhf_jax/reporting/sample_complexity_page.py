"""The report of learning from votes: one page with its tables and figures inside."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nlhf_jax.reporting.game_page import render_figures, render_table, write_page

_OFFLINE = (
  'Votes that are there already. Plug-in plays the equilibrium of the estimate; the bonus charges '
  'every pair for what is unknown of it, the version space every policy. Where the data cover '
  'little and leaving the reference is cheap, pessimism is ahead; where τ already holds the policy '
  'to the reference, it costs more than it saves.'
)
_ONLINE = (
  'Votes that are asked for. The main agent plays the equilibrium of the estimate, and is compared '
  'to an opponent of its own choice. Bands are 95 % intervals of means over seeds.'
)
CAPTIONS = {
  'rates': 'What a best response gains on the equilibrium of the estimate, by the number of votes. '
  'Once noise is small against τ the gap falls as one over the votes, before that as one over '
  'their root. Broken lines are the leading order, a closed form that nothing was fitted to; it is '
  'missing for classes of fewer numbers.',
  **{f'offline_{number}': _OFFLINE for number in range(1, 100)},
  **{f'online_{number}': _ONLINE for number in range(1, 100)},
  'rewards': 'Preferences that come from a reward, learnt as a game in log-odds. What is missing '
  'to the largest regularised reward falls as one over the votes, for the class that knows of '
  'rewards as for the one that knows of nothing, which needs more of them.',
}
COLUMNS = 8  # of a table, at most


def write(path: Path, results: Mapping[str, Any], figures: Mapping[str, bytes]) -> None:
  """Writes the page to `path`, from the contents of `results.json` and PNG figures by name."""
  content = [*_head(results), *_tables(results), *render_figures(figures, CAPTIONS)]
  write_page(path, results['name'], content)


def result_tables(results: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
  """Every title, with its curves by their names."""
  yield 'Rates: gap of the plug-in equilibrium, by votes', results['rates']['curves']
  for field in ('offline', 'online'):
    for title, panel in results[field]['panels'].items():
      yield f'{field.capitalize()}, {title}: gap, by votes', panel
  yield 'Bradley-Terry: reward missing, by votes', results['rewards']['curves']


def printed_points(at: Sequence[int | float]) -> list[int]:
  """Which of the points to print: the last, and before it evenly spread ones."""
  step = -(-len(at) // COLUMNS)
  return list(range((len(at) - 1) % step, len(at), step))


def format_cells(row: Mapping[str, Any], points: Sequence[int]) -> list[str]:
  """Means and half intervals."""
  return [f'{row["mean"][i]:.1e} ± {row["half"][i]:.0e}' for i in points]


def _head(results: Mapping[str, Any]) -> Iterable[str]:
  yield f'<h1>{html.escape(results["name"])}</h1><p class="lede">Preferences are not known but '
  yield 'voted on. How far is what one learns from the equilibrium, and whom should one compare? '
  yield 'Gaps are '
  yield f'what a best response gains, with payoffs in {results["payoff"].replace("_", "-")}; means '
  yield f'over {results["seeds"]} seeds with their 95 % intervals.</p>'
  facts = {
    field: f'{name.replace("_", " ")}, {results[field]["seconds"]:.0f} s'
    for field, name in results['worlds'].items()
  }
  items = (f'<div><dt>{field}</dt><dd>{fact}</dd></div>' for field, fact in facts.items())
  yield f'<dl>{"".join(items)}</dl>'


def _tables(results: Mapping[str, Any]) -> Iterable[str]:
  for title, rows in result_tables(results):
    at = next(iter(rows.values()))['at']
    points = printed_points(at)
    head = ['', *(f'{at[i]:g}' for i in points)]
    yield f'<h2>{html.escape(title)}</h2>'
    yield render_table(
      [], head, [[label, *format_cells(row, points)] for label, row in rows.items()]
    )
  for field in ('rates', 'rewards'):
    rows = results[field]['curves']
    at = next(iter(rows.values()))['at']
    yield f'<h2>{field.capitalize()}: slopes of log gap in log votes</h2>'
    cut = [[label, *(f'{slope:.2f}' for slope in row['slopes'])] for label, row in rows.items()]
    yield render_table([], ['up to', *(f'{n:g}' for n in at[1:])], cut)
  yield f'<h2>Solvers</h2><p>{describe_solvers(results)}</p>'
  for rows in unsolved(results).values():
    at = next(iter(rows.values()))['at']
    points = printed_points(at)
    cut = [[label, *(f'{row["left"][i]:.1e}' for i in points)] for label, row in rows.items()]
    yield render_table([], ['left, the most over seeds', *(f'{at[i]:g}' for i in points)], cut)


def unsolved(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Field -> solver and title -> what was left of games within, of the fields where any was."""
  found = {
    field: {
      f'{name}, {title}': row
      for title, rows in results[field]['unsolved'].items()
      for name, row in rows.items()
    }
    for field in ('offline', 'online')
  }
  return {field: rows for field, rows in found.items() if rows}


def describe_solvers(results: Mapping[str, Any]) -> str:
  """Whether the games within, of which every learner solves its own, were solved."""
  names = sorted({label.split(',')[0] for rows in unsolved(results).values() for label in rows})
  if not names:
    return 'Every game within was solved: nothing is left to gain in it, to nine digits.'
  return (
    f'Not solved to nine digits within: the games of {" and ".join(names)}; all others '
    'were. What is left is a bound on what a better policy would gain in the game that the learner '
    'made for itself, not in the true one.'
  )
