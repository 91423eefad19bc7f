"""The HTML report of learning from votes: one page with its tables and figures."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nlhf_jax.reporting import layout
from nlhf_jax.reporting.layout import Head, Section

_OFFLINE = (
  'Learning from given votes. Plug-in plays the equilibrium of the estimate; the bonus subtracts '
  'the uncertainty of every pair, the version space that of every policy. If the data cover few '
  'pairs and τ is small, pessimism has the smaller gap; if τ keeps the policy near the reference '
  'anyway, it has the larger one.'
)
_ONLINE = (
  'Learning from votes on chosen pairs. The main agent plays the equilibrium of the estimate, and '
  'is compared with an enhancer. Bands are 95 % intervals of means over seeds.'
)
CAPTIONS = {
  'rates': 'What a best response gains on the equilibrium of the estimate, by the number of votes '
  'n. The gap falls as 1 / n once the noise is small compared with τ, and as 1 / √n before. Dashed '
  'lines are the leading order in closed form, without fitted parameters, which exists for the '
  'class of all preferences only.',
  **{f'offline_{number}': _OFFLINE for number in range(1, 100)},
  **{f'online_{number}': _ONLINE for number in range(1, 100)},
  'rewards': 'Preferences that come from a reward, learned as a game in log-odds. The shortfall of '
  'the regularised reward falls as one over the number of votes, both for the Bradley-Terry class '
  'and for the class of all preferences, which needs more votes.',
}
COLUMNS = 8  # the most of a table


def write(path: Path, results: Mapping[str, Any], figures: Mapping[str, Figure]) -> None:
  """Writes the page to `path`, from the contents of `results.json` and figures by name."""
  parts = [
    layout.figure(name, figures[name], CAPTIONS[name]) for name in CAPTIONS if name in figures
  ]
  lede = 'Point at a curve to see its name and its last value.'
  sections = [Section('figures', 'Figures', lede, parts), *_tables(results)]
  seconds = {field: results[field]['seconds'] for field in results['worlds']}
  layout.write_page(path, _head(results), sections, seconds)


def result_tables(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """(title, name -> curve) of every table."""
  yield 'Rates: gap of the plug-in equilibrium, by votes', results['rates']['curves']
  for field in ('offline', 'online'):
    for title, panel in results[field]['panels'].items():
      yield f'{field.capitalize()}, {title}: gap, by votes', panel
  yield 'Bradley-Terry: reward shortfall, by votes', results['rewards']['curves']


def printed_points(at: Sequence[int | float]) -> list[int]:
  """The indices of the points to print: the last one, and evenly spread ones before it."""
  step = -(-len(at) // COLUMNS)
  return list(range((len(at) - 1) % step, len(at), step))


def format_cells(row: Mapping[str, Any], points: Sequence[int]) -> list[str]:
  """Means with half of their intervals, at these points."""
  return [f'{row["mean"][i]:.1e} ± {row["half"][i]:.0e}' for i in points]


def _head(results: Mapping[str, Any]) -> Head:
  lede = (
    'Preferences are known from votes only. How far is the learned policy from the equilibrium, '
    'and which pairs should be compared? Gaps are what a best response gains, with payoffs in '
    f'{results["payoff"].replace("_", "-")}; means over {results["seeds"]} seeds with their 95 % '
    'intervals.'
  )
  facts = {
    field: f'{name.replace("_", " ")}, {results[field]["seconds"]:.0f} s'
    for field, name in results['worlds'].items()
  }
  return Head('Sample complexity', results['name'], lede, (), facts)


def _tables(results: Mapping[str, Any]) -> Iterator[Section]:
  gaps = []
  for title, rows in result_tables(results):
    at = next(iter(rows.values()))['at']
    points = printed_points(at)
    head = ['', *(f'{at[i]:g}' for i in points)]
    cells = [[label, *format_cells(row, points)] for label, row in rows.items()]
    gaps.append(layout.table(title, head, cells))
  yield Section('gaps', 'Gaps', 'Means with half of their 95 % intervals, by votes.', gaps)
  slopes = []
  for field in ('rates', 'rewards'):
    rows = results[field]['curves']
    at = next(iter(rows.values()))['at']
    cells = [[label, *(f'{slope:.2f}' for slope in row['slopes'])] for label, row in rows.items()]
    slopes.append(
      layout.table(f'{field.capitalize()}: slopes', ['up to', *(f'{n:g}' for n in at[1:])], cells)
    )
  yield Section('slopes', 'Slopes', 'Slopes of the log gap in log votes.', slopes)
  left = []
  for field, rows in unsolved(results).items():
    at = next(iter(rows.values()))['at']
    points = printed_points(at)
    cells = [[label, *(f'{row["left"][i]:.1e}' for i in points)] for label, row in rows.items()]
    head = ['remaining gap, maximum over seeds', *(f'{at[i]:g}' for i in points)]
    left.append(layout.table(f'{field.capitalize()}: remaining gaps', head, cells))
  yield Section('inner-solvers', 'Solvers', describe_solvers(results), left)


def unsolved(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Field -> 'solver, title' -> remaining gap of unsolved inner games; only fields with any."""
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
  """A sentence on whether the learners solved their inner games."""
  names = sorted({label.split(',')[0] for rows in unsolved(results).values() for label in rows})
  if not names:
    return 'All inner games were solved to nine digits.'
  return (
    f'The inner games of {" and ".join(names)} were not solved to nine digits; all others '
    'were. The remaining gap is a bound in the game that the learner constructs, not in the true '
    'one.'
  )
