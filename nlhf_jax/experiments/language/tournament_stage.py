"""The tournament of an experiment, and what is published of it."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from nlhf_jax.data import tokenizers
from nlhf_jax.data.batches import map_chunks, take
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import tournament
from nlhf_jax.experiments.specs import LanguageExperiment
from nlhf_jax.experiments.stages import make_rollout, noted, respond
from nlhf_jax.judges.judge import Judge
from nlhf_jax.models import scoring
from nlhf_jax.reporting import tables, tournament_page
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Comparison, Params, Prompts
from nlhf_jax.tasks.summaries import styles
from nlhf_jax.training import interrupts


def compete(
  experiment: LanguageExperiment, players: Mapping[str, Params], panel: Mapping[str, Judge]
) -> list[dict]:
  """The tournament between the players; its records, one a held-out prompt."""
  stage = experiment.stages['tournament']
  path = stage.folder / 'samples.jsonl'
  with noted(stage):
    if not json_lines.exists(path):
      json_lines.write(path, play(experiment, players, panel))
  return json_lines.read(path)


def play(
  experiment: LanguageExperiment, players: Mapping[str, Params], panel: Mapping[str, Judge]
) -> list[dict]:
  """Lets every player respond to the held-out prompts, and every judge compare the responses."""
  tokenizer, stage = experiment.corpus.tokenizer, experiment.stages['tournament']
  prompts = take(experiment.corpus.held_out.prompts, slice(experiment.tournament_prompts))
  # Two responses a prompt: the first plays, the second shows what a counter-style would make of it.
  rollout = make_rollout(experiment, [{'policy': 1.0}], count=2, filters=experiment.filters)
  score = jax.jit(scoring.make_score(experiment.model.decoder))
  sides, others, ratios = {}, {}, {}
  for number, (name, params) in enumerate(players.items()):
    key = jax.random.fold_in(stage.key, number)
    (pair,) = respond(
      rollout,
      {'policy': params},
      prompts,
      key,
      f'{stage.name}, {name}',
      experiment.tournament_batch,
    )
    side, other = (jax.tree.map(lambda leaf, k=k: leaf[:, k : k + 1], pair) for k in (0, 1))
    of_reference = map_chunks(
      lambda chunk, _: score(players['sft'], chunk).left, Comparison(prompts, side)
    )
    sides[name] = side
    others[name] = tokenizers.texts(tokenizer, other.tokens, other.mask)
    ratios[name] = (side.log_probs - of_reference).sum(axis=(1, 2))
  said = {
    name: tournament.preferences(
      attended(judge, name), prompts, list(sides.values()), f'{stage.name}, {name} judge'
    )
    for name, judge in panel.items()
  }
  lines = tournament.make_records(tokenizer, prompts, sides, ratios, said)
  matrices = {}
  if experiment.corpus.embedded:
    matrices = {name: perfect_matrices(experiment, judge, prompts) for name, judge in panel.items()}
    for row, line in enumerate(lines):
      line |= styles.annotate(line, {name: texts[row] for name, texts in others.items()})
      line['perfect'] = {name: matrix[row].tolist() for name, matrix in matrices.items()}
  return heard(lines, [*said.values(), *matrices.values()])


def heard(lines: Sequence[dict], said: Sequence[np.ndarray]) -> list[dict]:
  """The lines on which every judge has a verdict on every pair, [n, K, K]; NaN is none.

  Raises:
    UserError: if there are none.
  """
  usable = ~np.any([np.isnan(matrix).any(axis=(1, 2)) for matrix in said], axis=0)
  if not usable.any():
    raise UserError('the tournament: there is no prompt on which the judges have all verdicts.')
  if not usable.all():
    count = int(np.sum(~usable))
    print(f'{count} of {len(lines)} prompts are left out: a judge has no usable verdict on them.')
  return list(itertools.compress(lines, usable))


def attended(judge: Judge, name: str) -> Judge:
  """The judge, behind a check whether the user asked to stop."""

  def payoff(comparison):
    interrupts.check(f'the tournament, {name} judge')
    return judge(comparison)

  return payoff


def publish(
  experiment: LanguageExperiment,
  workdir: Path,
  lines: Sequence[Mapping],
  exploited: Sequence[Mapping],
  accounts: Mapping[str, Mapping],
) -> dict:
  """Writes results, samples, metrics and the report, and prints the tables.

  Args:
    experiment: all of it.
    workdir: where to write to.
    lines: of the tournament.
    exploited: of the exploiters.
    accounts: of the judges from outside.
  """
  results = tournament.summarise(lines)
  if experiment.corpus.embedded:
    results['task'] = styles.summarise(lines)
  if exploited:
    results['exploitability'] = tournament.exploitability(exploited)
  folders = [stage.folder for stage in experiment.stages.values()]
  curves = [record for folder in folders for record in json_lines.read(folder / 'metrics.jsonl')]
  notes = {
    name: json_lines.read_json(stage.folder / 'stage.json')
    for name, stage in experiment.stages.items()
  }
  stages = {
    name: {fact: note[fact] for fact in ('steps', 'seconds') if fact in note}
    for name, note in notes.items()
  }
  judges = {stage: last_look(curves, stage) for stage in experiment.judges}
  json_lines.write(workdir / 'samples.jsonl', lines)
  json_lines.write(workdir / 'metrics.jsonl', curves)
  json_lines.write_json(workdir / 'results.json', results)
  page = {'name': experiment.name, 'judges': judges, 'stages': stages, 'outside': accounts}
  asked = min(experiment.tournament_prompts, len(experiment.corpus.held_out.prompts.tokens))
  page |= {'left_out': asked - len(lines), **results}
  tournament_page.write(workdir / 'report.html', page, curves, lines)
  announce(results, judges)
  return results


def last_look(curves: Sequence[Mapping], stage: str) -> dict[str, float]:
  """What was measured of a judge on held-out comparisons in the end."""
  of_stage = [record for record in curves if record['stage'] == stage]
  last = [record for record in of_stage if 'held_out_accuracy' in record][-1]
  return {name.removeprefix('held_out_'): last[name] for name in last if 'held_out' in name}


def perfect_matrices(experiment: LanguageExperiment, judge: Judge, prompts: Prompts) -> np.ndarray:
  """What a judge says of perfect summaries of each style against each other, [n, 3, 3]."""
  tokenizer = experiment.corpus.tokenizer
  posts = tokenizers.prompt_texts(tokenizer, *prompts)
  by_style = zip(*map(styles.perfect_summaries, posts), strict=True)
  ids = [tokenizers.response_ids(tokenizer, texts) for texts in by_style]
  sides = [tokenizers.pad_responses(tokenizer, rows, experiment.response_length) for rows in ids]
  return tournament.preferences(judge, prompts, sides)


def announce(results: Mapping, judges: Mapping[str, Mapping]) -> None:
  """Prints the tables of the results."""
  as_text, players, task = tables.as_text, results['policies'], results.get('task')
  if task:
    for name, matrix in task['judge_matrix'].items():
      cyclic = 'a cycle' if styles.weakest_edge(matrix) > 0.5 else 'NO cycle'
      cells = [[f'{value:.3f}' for value in row] for row in matrix]
      title = f'\nPerfect summaries, {name} judge ({cyclic}), row over column:'
      print(as_text(title, task['styles'], task['styles'], cells))
  announce_tables(results)
  if not task:
    print('No oracle is known for this data: a policy may exploit the errors of its judge.')
  if 'exploitability' in results:
    announce_exploiters(results['exploitability'])

  columns = {'KL to sft, nats': results['kl_to_reference'], 'tokens': results['length']}
  if task:
    columns['quality'] = task['quality']
    for style in (*task['styles'], 'none'):
      columns[style] = {name: task['shares'][name][style] for name in players}
    columns['best counter wins'] = {name: task['counter'][name]['win_rate'] for name in players}
  # Rounded before the zero is added, so that no KL is shown as -0.00.
  cells = [
    [f'{round(column[name], 2) + 0.0:.2f}' for column in columns.values()] for name in players
  ]
  print(as_text('\nPolicies:', players, list(columns), cells))
  if judges:
    print()
  for name, row in judges.items():
    name = name.replace('_', ' ')
    print(f'The {name} agrees with {row["accuracy"]:.1%} of the held-out judgements.')


def announce_tables(results: Mapping) -> None:
  """Prints win rates, rankings and cycles under every judge."""
  as_text, players = tables.as_text, results['policies']
  level = results['settled']['level'] if 'settled' in results else 0.05
  for name, table in results['tables'].items():
    within = f'{1 - level:.0%} intervals within ±{tournament.widest(table):.3f}'
    title = (
      f'\nWin rate of row over column, {name} judge, {results["comparisons"]} prompts, {within}:'
    )
    print(as_text(title, *tournament.as_cells(players, table)))
    pairs = table['pairs']
    if pairs['count'] > 1 and 'alone' in pairs:
      print(
        f'  of {pairs["count"]} pairs {pairs["alone"]} differ at 95 % each, {pairs["together"]} '
        'with all of them in mind (Holm)'
      )
    for cycle in results['cycles'][name]['first'][:3]:
      round_about = ' > '.join([*cycle['policies'], cycle['policies'][0]])
      sure = '' if cycle['certain'] else ', not certain'
      print(f'  a cycle: {round_about}, its weakest link {cycle["weakest"]:.3f}{sure}')
  for name, ranked in results['ranking'].items():
    cells = [
      [
        f'{row["lottery"]:.3f} [{row["low"]:.3f}, {row["high"]:.3f}]',
        f'{row["win_rate"]:.3f}',
        f'{row["borda"]:.3f} ±{row["borda_error"]:.3f}',
        f'{row["bradley_terry"]:.2f} ±{row["bradley_terry_error"]:.2f}',
      ]
      for row in ranked
    ]
    title = f'\nBy the maximal lottery of that table, {name} judge, 95 % over prompts:'
    heads = ['share', 'wins against it', 'Borda', 'Bradley-Terry']
    print(as_text(title, [row['policy'] for row in ranked], heads, cells))


def announce_exploiters(found: Mapping) -> None:
  """Prints what exploiters win, by the judge that trained them and the judge that measures."""
  by_judges = [
    (trained_by, measured_by)
    for trained_by, measured in next(iter(found.values())).items()
    for measured_by in measured
  ]
  cells = [
    [
      f'{of_player[trained_by][by]["win_rate"]:.3f} [{of_player[trained_by][by]["low"]:.3f}, '
      f'{of_player[trained_by][by]["high"]:.3f}]'
      for trained_by, by in by_judges
    ]
    for of_player in found.values()
  ]
  columns = [f'{trained_by}, seen by {by}' for trained_by, by in by_judges]
  title = '\nWin rate of an exploiter trained against each policy under a judge, 95 %:'
  print(tables.as_text(title, list(found), columns, cells))
