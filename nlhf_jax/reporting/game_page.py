"""The HTML report of a tabular run: one page with its figures and tables."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from nlhf_jax.reporting import layout
from nlhf_jax.reporting.layout import Head, Section, markup

# Name of the figure -> caption, in the order of the page.
CAPTIONS = {
  'preferences': 'How often the action of the row is preferred to the action of the column; sorted '
  'by the share of the maximal lottery.',
  'policies': 'The reference, the equilibria, and the policy of RLHF.',
  'simplex': 'Each corner is an action, and each point a policy. Solvers start at the ring; the '
  'colour darkens with the number of updates.',
  'gap_tau': 'Duality gap of the last iterate in the game regularised by τ: what best responses of '
  'both players could gain. Lower is better; a flat line converges to another point, such as the '
  'equilibrium of the unregularised game.',
  'gap_tau_average': 'The same for the average of all iterates.',
  'gap': 'Duality gap of the last iterate in the unregularised game. Solvers of the regularised '
  'game stop at the bias that the regularisation causes.',
  'gap_average': 'The same for the average of all iterates, which is what converges for '
  'multiplicative weights and regret matching. (The iterate of fictitious play is itself an '
  'average.)',
}


def write(path: Path, results: Mapping[str, Any], figures: Mapping[str, Figure]) -> None:
  """Writes the page to `path`, from the contents of `results.json` and figures by name."""
  sections = [*_figures(results, figures), _solvers(results), *_rlhf(results)]
  seconds = {
    label: row['seconds'] + row['compile_seconds'] for label, row in results['solvers'].items()
  }
  layout.write_page(path, _head(results), sections, seconds)


def _head(results: Mapping[str, Any]) -> Head:
  names, choice = results['actions'], results['choice'][0]
  prompts, groups = len(results['reference']), results['groups'][0]
  lede = markup(
    'The game <b>{}</b> of {}{}. {}',
    results['game'],
    _count(len(names), 'action'),
    f' on {prompts} prompts, of which the first is shown' if prompts > 1 else '',
    describe_groups(groups)
    if len(groups) > 1
    else _summary(choice, results['maximal_lottery'][0], names),
  )
  facts = {
    'τ, KL coefficient': f'{results["tau"]:g}',
    'Condorcet winner': choice['condorcet'] or 'none',
    'Borda winner': ' = '.join(choice['borda']) or 'none',
    'three-cycles': f'{choice["three_cycles"]:,}',
    'transitive share': f'{choice["transitive_share"]:.0%}',
  }
  if 'sigma' in results:
    facts['sigma at the equilibrium'] = f'{results["sigma"]:.3g}'
    facts['self-play is stable for'] = f'eta < {results["stable_steps"]["self_play"]:.3g}'
    facts['Newton steps'] = str(max(results['newton_steps']))
  return Head('Tabular game', results['name'], lede, results['notes'], facts)


def describe_groups(groups: Sequence[Sequence[str]]) -> str:
  """What can be concluded of actions in several groups that no comparison connects."""
  shown = [', '.join(group[:5]) + (', \u2026' if len(group) > 5 else '') for group in groups]
  return (
    f'The actions fall into {len(groups)} groups that never met: {"; ".join(shown)}. Nothing is '
    'known of one group against another: the pairs between them count as 1/2, and shares, gaps and '
    'rankings mean something within a group only.'
  )


def _summary(choice: Mapping[str, Any], lottery: Sequence[float], names: Sequence[str]) -> Markup:
  support = [name for name, share in zip(names, lottery, strict=True) if share > 1e-9]
  if choice['condorcet']:
    return markup(
      '<b>{}</b> beats every other action: always playing it is the equilibrium.',
      choice['condorcet'],
    )
  if choice['undefeated']:
    several = Markup(' and ').join(markup('<b>{}</b>', name) for name in choice['undefeated'])
    return markup('No action beats {}: always playing it is an equilibrium.', several)
  return markup(
    'No action beats every other one: every single action loses to another one, and the '
    'equilibrium mixes {}.',
    _count(len(support), 'action'),
  )


def _figures(results: Mapping[str, Any], figures: Mapping[str, Figure]) -> Iterator[Section]:
  """The game with its policies, then the convergence of the solvers."""
  game = ('preferences', 'policies', 'simplex')
  parts = [] if len(results['actions']) > layout.MAX_MATRIX else [_preferences(results)]
  seen = ('preferences',) if parts else ()
  parts += [
    layout.figure(name, figures[name], CAPTIONS[name])
    for name in game
    if name in figures and name not in seen
  ]
  yield Section('game', 'The game', '', parts)
  rest = [name for name in CAPTIONS if name in figures and name not in game]
  lede = 'Point at a curve to see its name and its last value.'
  curves = [layout.figure(name, figures[name], CAPTIONS[name]) for name in rest]
  yield Section('convergence', 'Convergence', lede, curves)


def _preferences(results: Mapping[str, Any]) -> Markup:
  payoff = results['payoff'][0]
  names, shares = results['actions'], results['maximal_lottery'][0]
  most = max(abs(value) for row in payoff for value in row)
  if most > 0.5:  # payoffs that are no probabilities: 100 % stands for the largest
    payoff = [[value / (2 * most) for value in row] for row in payoff]
  win_rate = [[value + 0.5 for value in row] for row in payoff]
  caption = CAPTIONS['preferences']
  if most > 0.5:
    caption += f' Payoffs are no probabilities here: 100 % stands for a payoff of {most:g}.'
  return layout.matrix(layout.sort_by_share(names, win_rate, shares), 'preferences', caption)


def _solvers(results: Mapping[str, Any]) -> Section:
  at_tau = results['tau'] > 0
  columns = {'gap': 'last iterate', 'average_gap': 'average', 'distance': 'distance to Nash'}
  if at_tau:
    columns = {
      'gap_tau': 'last iterate',
      'average_gap_tau': 'average',
      'kl': 'KL to Nash at τ, nats',
    } | columns
  rows = [
    [label]
    + [f'{row[name][-1]:.1e}' for name in columns]
    + [f'{row["updates"]:,}', f'{row["seconds"]:.3f}', f'{row["compile_seconds"]:.2f}']
    for label, row in results['solvers'].items()
  ]
  head = ['solver', *columns.values(), 'updates', 'seconds', 'to compile']
  groups = [('', 1), *([(f'gap at τ = {results["tau"]:g}', 3)] if at_tau else [])]
  groups += [('gap, unregularised', 3), ('', 3)]
  lede = (
    'Duality gaps in win probability after all updates: what best responses of both players could '
    'gain. Zero is an equilibrium.'
  )
  prompts = len(results['reference'])
  if prompts > 1:
    lede += f' All are means over {prompts} prompts.'
  if not all(results['maximal_lottery_is_unique']):
    lede += (
      ' The unregularised game has several equilibria: the one shown here, to which distances are '
      'measured, is that of the largest entropy.'
    )
  label = f'Table of {_count(len(rows), "solver")}'
  return Section('solvers', 'Solvers', lede, [layout.table(label, head, rows, groups)])


def _rlhf(results: Mapping[str, Any]) -> Iterator[Section]:
  if 'rlhf' not in results:
    return
  rows = []
  for sampling, outcome in results['rlhf'].items():
    chosen = max(range(len(results['actions'])), key=outcome['rlhf'][0].__getitem__)
    rows.append(
      [
        sampling,
        results['actions'][chosen],
        f'{outcome["rlhf"][0][chosen]:.3f}',
        f'{outcome["nash_beats_rlhf"][0]:.3f}',
        f'{outcome["rlhf_exploitability"][0]:.3f}',
        f'{outcome["nash_exploitability"][0]:.3f}',
      ]
    )
  lede = (
    'A Bradley-Terry reward is fitted to the same preferences, on pairs of actions drawn from a '
    'sampling policy, and maximised at the same τ. The reward, and with it the policy, depends on '
    'the sampling; the equilibrium does not. The gains are the win probability of the best '
    'counter-action minus one half. RLHF weighs the KL against rewards and the equilibrium against '
    'win probability, so the same τ keeps them at different distances from the reference.'
  )
  if len(results['reference']) > 1:
    lede += ' The first prompt is shown.'
  head = ['pairs sampled from', 'RLHF plays most', 'probability', 'Nash at τ wins']
  head += ['gain on RLHF', 'gain on Nash']
  yield Section('rlhf', 'RLHF against Nash', lede, [layout.table('Table of RLHF', head, rows)])


def _count(number: int, thing: str) -> str:
  return f'{number} {thing}' if number == 1 else f'{number} {thing}s'
