"""The HTML report of a tabular run: one page with its tables and figures."""

import html
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

from nlhf_jax.reporting import formatting

# Name of the figure -> caption, in the order of the page.
CAPTIONS = {
  'preferences': 'How often the action of the row is preferred to the action of the column.',
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


def write(path: Path, results: Mapping[str, Any], figures: Mapping[str, bytes]) -> None:
  """Writes the page to `path`, from the contents of `results.json` and PNG figures by name."""
  parts = [_head(results), _solvers(results), render_figures(figures, CAPTIONS), _rlhf(results)]
  write_page(path, results['name'], chain.from_iterable(parts))


def write_page(path: Path, title: str, content: Iterable[str]) -> None:
  """Writes a page with this markup to `path`."""
  template = (
    resources.files('nlhf_jax.reporting').joinpath('game_page.html').read_text(encoding='utf-8')
  )
  page = template.replace('<!--TITLE-->', html.escape(title))
  path.write_text(page.replace('<!--CONTENT-->', ''.join(content)), encoding='utf-8')


def _head(results: Mapping[str, Any]) -> Iterable[str]:
  names, choice = results['actions'], results['choice'][0]
  prompts = len(results['reference'])
  yield f'<h1>{html.escape(results["name"])}</h1><p class="lede">'
  yield f'The game <b>{html.escape(results["game"])}</b> of {_count(len(names), "action")}'
  yield f' on {prompts} prompts, of which the first is shown' if prompts > 1 else ''
  groups = results['groups'][0]
  yield '. ' + (
    html.escape(describe_groups(groups))
    if len(groups) > 1
    else _summary(choice, results['maximal_lottery'][0], names)
  )
  yield '</p>'
  yield ''.join(f'<p class="note">{html.escape(note)}</p>' for note in results['notes'])
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
  items = (
    f'<div><dt>{name}</dt><dd>{html.escape(fact)}</dd></div>' for name, fact in facts.items()
  )
  yield f'<dl>{"".join(items)}</dl>'


def describe_groups(groups: Sequence[Sequence[str]]) -> str:
  """What can be concluded of actions in several groups that no comparison connects."""
  shown = [', '.join(group[:5]) + (', \u2026' if len(group) > 5 else '') for group in groups]
  return (
    f'The actions fall into {len(groups)} groups that never met: {"; ".join(shown)}. Nothing is '
    'known of one group against another: the pairs between them count as 1/2, and shares, gaps and '
    'rankings mean something within a group only.'
  )


def _summary(choice: Mapping[str, Any], lottery: Sequence[float], names: Sequence[str]) -> str:
  support = [name for name, share in zip(names, lottery, strict=True) if share > 1e-9]
  if choice['condorcet']:
    return (
      f'<b>{html.escape(choice["condorcet"])}</b> beats every other action: always playing it is '
      'the equilibrium.'
    )
  if choice['undefeated']:
    several = ' and '.join(f'<b>{html.escape(name)}</b>' for name in choice['undefeated'])
    return f'No action beats {several}: always playing it is an equilibrium.'
  return (
    'No action beats every other one: every single action loses to another one, and the '
    f'equilibrium mixes {_count(len(support), "action")}.'
  )


def _solvers(results: Mapping[str, Any]) -> Iterable[str]:
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
  yield '<h2>Solvers</h2><p>Duality gaps in win probability after all updates: what best responses '
  yield 'of both players could gain. Zero is an equilibrium.'
  prompts = len(results['reference'])
  yield f' All are means over {prompts} prompts.</p>' if prompts > 1 else '</p>'
  yield render_table([*groups, ('gap, unregularised', 3), ('', 3)], head, rows)
  if not all(results['maximal_lottery_is_unique']):
    yield '<p>The unregularised game has several equilibria: the one shown here, to which '
    yield 'distances are measured, is that of the largest entropy.</p>'


def render_figures(figures: Mapping[str, bytes], captions: Mapping[str, str]) -> Iterable[str]:
  """Markup with the figures inside, in the order of the captions."""
  yield '<h2>Figures</h2>'
  for name in sorted(figures, key=list(captions).index):
    yield formatting.format_figure(name, figures[name], captions[name])


def _rlhf(results: Mapping[str, Any]) -> Iterable[str]:
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
  yield '<h2>RLHF against Nash</h2><p>A Bradley-Terry reward is fitted to the same preferences, on '
  yield 'pairs of actions drawn from a sampling policy, and maximised at the same τ. The reward, '
  yield 'and with it the policy, depends on the sampling; the equilibrium does not. The gains are '
  yield 'the win probability of the best counter-action minus one half. RLHF weighs the KL against '
  yield 'rewards and the equilibrium against win probability, so the same τ keeps them at '
  yield 'different distances from the reference.'
  yield ' The first prompt is shown.</p>' if len(results['reference']) > 1 else '</p>'
  head = ['pairs sampled from', 'RLHF plays most', 'probability', 'Nash at τ wins']
  yield render_table([], [*head, 'gain on RLHF', 'gain on Nash'], rows)


def render_table(
  groups: Sequence[tuple[str, int]], head: Sequence[str], rows: Iterable[Sequence[str]]
) -> str:
  """Markup of a table; `groups` are headings above `head`, with the number of columns of each."""
  above = ''.join(
    f'<th colspan="{span}" scope="colgroup" class="group">{name}</th>' for name, span in groups
  )
  below = ''.join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
  lines = (
    f'<tr><th scope="row">{html.escape(label)}</th>'
    + ''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)
    + '</tr>'
    for label, *cells in rows
  )
  head_rows = (f'<tr>{above}</tr>' if above else '') + f'<tr>{below}</tr>'
  return (
    '<div class="scroll" tabindex="0" role="region" aria-label="table"><table>'
    f'<thead>{head_rows}</thead><tbody>{"".join(lines)}</tbody></table></div>'
  )


def _count(number: int, thing: str) -> str:
  return f'{number} {thing}' if number == 1 else f'{number} {thing}s'
