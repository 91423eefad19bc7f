"""The page that compares two runs of one kind of experiment."""

import difflib
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib.figure import Figure

from nlhf_jax.errors import UserError
from nlhf_jax.reporting import game_plots, layout, provenance
from nlhf_jax.reporting.layout import Head, Section

MAX_PAIRS = 15  # of policies in the figure of win rates
MAX_CURVES = 12
MAX_SAMPLES = 100  # prompts whose responses are shown
CURVES = re.compile(r'win_rate|held_out_(accuracy|log_loss|nats)|kl_to_reference|^(worst_)?gap$')
# What differs between any two runs without a meaning.
TIMES = re.compile(r'(^|\.)(seconds|compile_seconds|at|judged)(\.|$)')


class Run(NamedTuple):
  """A finished run: its folder, and what its files hold."""

  folder: Path
  config: Mapping[str, Any]
  results: Mapping[str, Any]
  metrics: Sequence[Mapping[str, Any]]
  samples: Sequence[Mapping[str, Any]]


def read_run(folder: Path) -> Run:
  """A finished run, of which nothing is changed.

  Raises:
    UserError: if the folder is not the work directory of a finished run, or a file is damaged.
  """
  config = _read(folder, 'config.json', 'give the work directory of a run')
  if not isinstance(config, dict) or 'experiment' not in config:
    raise UserError(f"'{folder / 'config.json'}' is not the config of a run; give another folder.")
  results = _read(folder, 'results.json', 'finish the run first, with the command that started it')
  if not isinstance(results, dict):
    raise UserError(f"'{folder / 'results.json'}' holds no results; run the experiment again.")
  metrics = _read_lines(folder / 'metrics.jsonl', {'stage', 'step'})
  samples = _read_lines(folder / 'samples.jsonl', {'prompt', 'responses'})
  return Run(folder, config, results, metrics, samples)


def _read(folder: Path, name: str, remedy: str) -> Any:
  path = folder / name
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except OSError as error:
    raise UserError(f"'{path}' cannot be read ({error.strerror}); {remedy}.") from None
  except (ValueError, RecursionError):
    raise UserError(f"'{path}' is damaged; run the experiment again to restore it.") from None


def _read_lines(path: Path, needed: set[str]) -> list[dict[str, Any]]:
  """The records of a file, each with the fields that are needed; none without a file."""
  if not path.exists():
    return []
  records = []
  lines = path.read_bytes().split(b'\n')
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except (ValueError, RecursionError):
      record = None
    if not isinstance(record, dict) or not needed <= record.keys():
      raise UserError(f"'{path}', line {number}, is damaged; run the experiment again.")
    records.append(record)
  return records


def write(path: Path, left: Run, right: Run) -> None:
  """Writes the page of two runs.

  Raises:
    UserError: if they are of different kinds, or no figure is in both.
  """
  kinds = [run.config['experiment'] for run in (left, right)]
  if kinds[0] != kinds[1]:
    raise UserError(
      f"'{left.folder}' is a run of the kind {kinds[0]} and '{right.folder}' of the kind "
      f'{kinds[1]}; only runs of one kind can be compared.'
    )
  names = name_runs(left.folder, right.folder)
  numbers = [flatten_numbers(run.results) for run in (left, right)]
  common = [name for name in numbers[0] if name in numbers[1]]
  if not common:
    raise UserError(
      f"'{left.folder}' and '{right.folder}' have no figure in common: their policies, judges or "
      'methods have different names.'
    )
  sections = [
    *_win_rates(left.results, right.results, names),
    *_curves(left, right, names),
    _settings(left, right, names),
    _numbers(*numbers, common, names),
    *_responses(left, right, names),
  ]
  lede = layout.markup('<b>{}</b> against <b>{}</b>, two runs of the kind {}.', *names, kinds[0])
  head = Head('Comparison of two runs', ' and '.join(names), lede, [*_notes(left, right)])
  made = provenance.describe_comparison(
    shlex.join(['nlhf', 'compare', str(left.folder), str(right.folder)])
  )
  layout.write_made(path, head, sections, made)


def name_runs(left: Path, right: Path) -> tuple[str, str]:
  """Names of two folders, as short as they can be told apart."""
  parts = [folder.resolve().parts for folder in (left, right)]
  for count in range(1, max(map(len, parts)) + 1):
    first, second = ('/'.join(part[-count:]) for part in parts)
    if first != second:
      return first, second
  return str(left), str(right)


def flatten_numbers(results: Mapping[str, Any]) -> dict[str, int | float]:
  """The finite numbers of results, by their names with dots, without times.

  Rankings are named by their policies, benchmarks by title, row and column; of a learning curve the
  last value is taken. Matrices are left out.
  """
  found = {}

  def add(name, value):
    if TIMES.search(name):
      return
    if isinstance(value, dict):
      for key, item in value.items():
        add(f'{name}.{key}' if name else key, item)
    elif isinstance(value, list) and value and all(_is_number(item) for item in value):
      add(f'{name} (last)', value[-1])
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
      for item in value:
        if 'policy' in item:
          add(f'{name}.{item["policy"]}', {key: item[key] for key in item if key != 'policy'})
        elif {'title', 'columns', 'rows'} <= item.keys():
          for row in item['rows']:
            add(f'{item["title"]}.{row[0]}', dict(zip(item['columns'], row[1:], strict=False)))
    elif _is_number(value):
      found[name] = value

  add('', results)
  return found


def _is_number(value: object) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _notes(left: Run, right: Run) -> Iterator[str]:
  """What a reader has to know before comparing figures."""
  judges = [set(run.results.get('tables', {})) for run in (left, right)]
  trained = sorted((judges[0] & judges[1]) & {'learned', 'reward', 'gpm', 'held_apart'})
  if trained:
    yield (
      f'Each run trains its own judge ({", ".join(trained)}): figures under it are comparable only '
      'if the settings and data of the judge are the same.'
    )
  counts = [run.results.get('comparisons') for run in (left, right)]
  if counts[0] != counts[1]:
    yield f'The runs have different numbers of comparisons: {counts[0]} and {counts[1]}.'
  if left.samples and right.samples:
    prompts = [{str(row['prompt']) for row in run.samples} for run in (left, right)]
    if prompts[0] != prompts[1]:
      shared = len(prompts[0] & prompts[1])
      yield (
        f'The tournaments have different prompts; {shared} are in both. Win rates over different '
        'prompts differ by chance as well.'
      )


def _win_rates(
  left: Mapping[str, Any], right: Mapping[str, Any], names: Sequence[str]
) -> Iterator[Section]:
  """One figure a judge: every pair of common policies, with the intervals of both runs."""
  policies = [name for name in left.get('policies', []) if name in right.get('policies', [])]
  pairs = [(a, b) for place, b in enumerate(policies) for a in policies[place + 1 :]]
  shown = pairs[:MAX_PAIRS]
  parts = []
  for judge in left.get('tables', {}):
    if judge in right.get('tables', {}) and pairs:
      points = [[_cell(results, judge, pair) for pair in shown] for results in (left, right)]
      figure = _draw_pairs([f'{a} beats {b}' for a, b in shown], points, names, judge)
      more = f' The first {len(shown)} of {len(pairs)} pairs.' if len(pairs) > len(shown) else ''
      caption = f'Win rates under the {judge} judge with their intervals, in both runs.{more}'
      parts.append(layout.figure(f'win-rates-{len(parts) + 1}', figure, caption, False))
  if parts:
    yield Section('win-rates', 'Win rates', '', parts)


def _cell(results: Mapping[str, Any], judge: str, pair: tuple[str, str]) -> list[float]:
  """Win rate of a pair of policies, and the ends of its interval; the same again without one."""
  i, j = map(results['policies'].index, pair)
  table = results['tables'][judge]
  rate = table['win_rate'][i][j]
  ends = [table[end][i][j] if end in table else rate for end in ('low', 'high')]
  return [math.nan if value is None else value for value in (rate, *ends)]


def _draw_pairs(
  labels: Sequence[str],
  points: Sequence[Sequence[Sequence[float]]],
  names: Sequence[str],
  judge: str,
) -> Figure:
  figure = Figure(figsize=(7, 1.2 + 0.42 * len(labels)), layout='constrained')
  axes = game_plots.style_axes(figure.add_subplot(), f'{judge} judge')
  for number, (rows, name) in enumerate(zip(points, names, strict=True)):
    for place, (rate, low, high) in enumerate(rows):
      at, colour = place + 0.22 * number - 0.11, game_plots.COLOURS[number]
      tip = f'{game_plots.CURVE}{name}: {labels[place]} at {rate:.1%}, {low:.1%} to {high:.1%}'
      axes.plot([low, high], [at, at], color=colour, linewidth=2, gid=tip)
      axes.plot(
        [rate], [at], color=colour, marker='o', markersize=6, label=name if not place else ''
      )
  axes.axvline(0.5, color=game_plots.INK, linewidth=0.9, linestyle=(0, (1, 2)))
  literal = [label.replace('$', r'\$') for label in labels]
  axes.set_yticks(range(len(labels)), literal)
  axes.set(ylim=(len(labels) - 0.5, -0.5), xlabel='win rate')
  axes.grid(axis='x', color=game_plots.PALE, linewidth=0.6)
  figure.legend(loc='outside right upper', frameon=False, fontsize=9, labelcolor=game_plots.INK)
  return figure


def _curves(left: Run, right: Run, names: Sequence[str]) -> Iterator[Section]:
  """Learning curves of both runs, for the stages and metrics that both have."""
  found = [_collect_curves(run.metrics) for run in (left, right)]
  common = [key for key in found[0] if key in found[1]]
  parts = []
  for stage, metric in common[:MAX_CURVES]:
    figure = Figure(figsize=(7, 3.4), layout='constrained')
    title = f'{stage}: {metric}'.replace('_', ' ').replace('$', r'\$')
    axes = game_plots.style_axes(figure.add_subplot(), title)
    axes.set_xlabel('steps')
    styles = zip(game_plots.COLOURS, game_plots.LINES, strict=False)
    for curves, name, (colour, line) in zip(found, names, styles, strict=False):
      steps, values = zip(*curves[stage, metric], strict=True)
      gid = game_plots.name_curve(name, values)
      style = {'color': colour, 'linestyle': line, 'linewidth': 1.8}
      axes.plot(steps, values, label=name, gid=gid, **style)
    axes.grid(color=game_plots.PALE, linewidth=0.6)
    figure.legend(loc='outside right center', frameon=False, labelcolor=game_plots.INK)
    parts.append(layout.figure(f'curve-{len(parts) + 1}', figure, '', False))
  if parts:
    more = f' The first {len(parts)} of {len(common)}.' if len(common) > len(parts) else ''
    lede = f'Stages and metrics that both runs have. Point at a curve to see its name.{more}'
    yield Section('curves', 'Learning curves', lede, parts)


def _collect_curves(
  metrics: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str], list[tuple[int, int | float]]]:
  found: dict[tuple[str, str], list[tuple[int, int | float]]] = {}
  for row in metrics:
    for metric, value in row.items():
      if CURVES.search(metric) and _is_number(value):
        found.setdefault((row['stage'], metric), []).append((row['step'], value))
  return found


def _settings(left: Run, right: Run, names: Sequence[str]) -> Section:
  changed = provenance.differences(left.config, right.config)
  if not changed:
    return Section('settings', 'Settings', 'Both runs have the same settings.', [])
  table = layout.table(
    f'{len(changed)} settings that differ',
    ['setting', *names],
    [[f'config.{name}', *values] for name, *values in changed],
  )
  return Section('settings', 'Settings', 'What differs between the configs of the runs.', [table])


def _numbers(
  left: Mapping[str, int | float],
  right: Mapping[str, int | float],
  common: Sequence[str],
  names: Sequence[str],
) -> Section:
  lede = f'{len(common):,} numbers are in both results. '
  for only, other, name in ((left, right, names[0]), (right, left, names[1])):
    rest = [key for key in only if key not in other]
    lede += f'{len(rest):,} more are in {name} alone. ' if rest else ''
  rows = [
    [name, f'{left[name]:.4g}', f'{right[name]:.4g}', f'{right[name] - left[name]:+.3g}']
    for name in common
  ]
  table = layout.table(f'Table of {len(rows):,} numbers', ['number', *names, 'difference'], rows)
  return Section('numbers', 'All numbers', lede.strip(), [table])


def _responses(left: Run, right: Run, names: Sequence[str]) -> Iterator[Section]:
  """Responses of the last common policy to the same prompts, with the words that differ."""
  policies = [
    name for name in left.results.get('policies', []) if name in right.results.get('policies', [])
  ]
  theirs = {str(row['prompt']): row for row in right.samples}
  shared = [row for row in left.samples if str(row['prompt']) in theirs]
  if not policies or not shared:
    return
  policy = policies[-1]
  pairs = []
  for row in shared[:MAX_SAMPLES]:
    prompt = str(row['prompt'])
    texts = [str(one['responses'].get(policy, '')) for one in (row, theirs[prompt])]
    marked = [mark_words(*texts), mark_words(*texts[::-1])]
    pairs.append((prompt, list(zip(names, marked, strict=True))))
  more = f' The first {len(pairs)} of {len(shared)} prompts.' if len(shared) > len(pairs) else ''
  lede = (
    f'What {policy} responds to the same prompts in both runs; words that the other response lacks '
    f'are marked.{more}'
  )
  yield Section('responses', 'Responses', lede, [layout.side_by_side(pairs)])


def mark_words(text: str, other: str) -> Markup:
  """The text, with the words marked that the other text lacks at that place."""
  words, others = (re.findall(r'\s+|\S+', one) for one in (text, other))
  matcher = difflib.SequenceMatcher(None, words, others, autojunk=False)
  parts = []
  for kind, begin, end, _, _ in matcher.get_opcodes():
    part = ''.join(words[begin:end])
    marked = kind != 'equal' and part.strip()
    parts.append(layout.markup('<ins>{}</ins>' if marked else '{}', part))
  return Markup('').join(parts)
