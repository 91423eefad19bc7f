"""The tournament of an experiment, and the files and tables that report it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from nlhf_jax.data import dialogue_texts, tokenizers
from nlhf_jax.data.batches import map_chunks, take
from nlhf_jax.evaluation import tournament
from nlhf_jax.evaluation.best_of_responses import describe_selection, kl_of_win_rate
from nlhf_jax.experiments.language.task_example import task_example
from nlhf_jax.experiments.specs import LanguageExperiment
from nlhf_jax.experiments.stages import make_rollout, respond, work_on
from nlhf_jax.judges.judge import Judge
from nlhf_jax.models import scoring
from nlhf_jax.models.decoder import Decoder, temper
from nlhf_jax.progress import progress
from nlhf_jax.reporting import formatting, tournament_page
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Comparison, Params, Prompts, Responses
from nlhf_jax.training import interrupts
from nlhf_jax.training.trackers import read_curve


def run_tournament(
  experiment: LanguageExperiment,
  entries: Mapping[str, Params],
  panel: Mapping[str, Judge],
  select: Judge | None,
) -> list[dict]:
  """The records of the tournament between the entries, one for each held-out prompt.

  Args:
    experiment: whose stages are trained.
    entries: name -> parameters.
    panel: the judges that compare.
    select: the judge that selects the best of n responses of SFT, if there is such an entry.
  """
  stage = experiment.stages['tournament']
  path = stage.folder / 'samples.json'
  with work_on(stage):
    if json_lines.read_sealed(path) is None:
      json_lines.write_sealed(path, {'lines': make_samples(experiment, entries, panel, select)})
    return json_lines.read_sealed(path)['lines']


def make_samples(
  experiment: LanguageExperiment,
  entries: Mapping[str, Params],
  panel: Mapping[str, Judge],
  select: Judge | None,
) -> list[dict]:
  """Samples responses of every entry to the held-out prompts, and has every judge compare them."""
  tokenizer, stage = experiment.corpus.tokenizer, experiment.stages['tournament']
  prompts = take(experiment.corpus.held_out.prompts, slice(experiment.tournament_prompts))
  # Two responses per prompt: the first is compared; the second shows which style would beat it.
  rollout = make_rollout(experiment, [{'policy': 1.0}], count=2, filters=experiment.filters)
  log_prob = make_log_prob(experiment.model.decoder, experiment.filters.temperature)
  sides, others, ratios = {}, {}, {}
  for number, (name, params) in enumerate(entries.items()):
    key, label = jax.random.fold_in(stage.key, number), f'{stage.name}, {name}'
    batch = experiment.tournament_batch
    (pair,) = respond(rollout, {'policy': params}, prompts, key, label, batch)
    side, other = (jax.tree.map(lambda leaf, k=k: leaf[:, k : k + 1], pair) for k in (0, 1))
    own, reference = (log_prob(slot, prompts, side) for slot in (params, entries['sft']))
    sides[name] = side
    others[name] = dialogue_texts.response_texts(tokenizer, other)
    ratios[name] = (own - reference).sum(axis=(1, 2))
  among = []
  if select:
    name = f'best_of_{experiment.best_of}'
    key = jax.random.fold_in(stage.key, len(entries))
    best = sample_best(experiment, entries['sft'], select, prompts, key)
    (sides[name], other), ratios[name], among = best
    others[name] = dialogue_texts.response_texts(tokenizer, other)
  preferences = {
    name: tournament.compare_policies(
      make_interruptible(judge, label), prompts, list(sides.values()), label
    )
    for name, judge in panel.items()
    for label in [f'{stage.name}, {name} judge']
  }
  lines = tournament.make_records(tokenizer, prompts, sides, ratios, preferences)
  matrices, annotator = {}, experiment.corpus.annotator
  if annotator:
    matrices = {name: perfect_matrices(experiment, judge, prompts) for name, judge in panel.items()}
    for row, line in enumerate(lines):
      line |= annotator.annotate(line, {name: texts[row] for name, texts in others.items()})
      line['perfect'] = {name: matrix[row].tolist() for name, matrix in matrices.items()}
  return tournament.drop_unjudged_prompts(
    lines, [*preferences.values(), *matrices.values(), *among]
  )


class BestResponses(NamedTuple):
  """Two responses of the best of n to each prompt, from n candidates each.

  `kl` [m] estimates KL(best of n, SFT) on each prompt, nats; `payoffs` are those among the
  candidates of the first and of the second, [m, n, n] each.
  """

  sides: tuple[Responses, Responses]
  kl: np.ndarray
  payoffs: list[np.ndarray]


def sample_best(
  experiment: LanguageExperiment, params: Params, select: Judge, prompts: Prompts, key: jax.Array
) -> BestResponses:
  """The best of n responses, by the mean win rate of each against the others.

  Args:
    experiment: with the number n.
    params: of the policy that responds.
    select: the judge that selects.
    prompts: m of them.
    key: of sampling.
  """
  n, label = experiment.best_of, f'{experiment.stages["tournament"].name}, best of n'
  rollout = make_rollout(experiment, [{'policy': 1.0}], count=2 * n, filters=experiment.filters)
  batch = max(experiment.tournament_batch // n, 1)  # as many responses at once as of other entries
  (drawn,) = respond(rollout, {'policy': params}, prompts, key, label, batch)
  judge = make_interruptible(select, label)
  sides, payoffs, random = [], [], np.random.default_rng(experiment.seed)
  for number, part in enumerate((slice(0, n), slice(n, 2 * n)), 1):
    candidates = jax.tree.map(lambda leaf, part=part: leaf[:, part], drawn)
    with progress(len(prompts.tokens), f'{label}, selection {number} of 2', 'prompt') as bar:
      payoff = map_chunks(
        lambda chunk, _: judge(Comparison(*chunk, chunk[1])),
        (prompts, candidates),
        batch,
        update=bar.update,
      )
    best = np.where(np.isnan(payoff), -np.inf, payoff).mean(axis=2).argmax(axis=1)
    rows = best[:, None, None]
    chosen = jax.tree.map(lambda leaf, rows=rows: np.take_along_axis(leaf, rows, 1), candidates)
    sides.append(chosen)
    payoffs.append(payoff)
  texts = dialogue_texts.response_texts(experiment.corpus.tokenizer, drawn)
  texts = np.reshape(np.array(texts, object), drawn.tokens.shape[:2])[:, :n].tolist()
  kl = [kl_of_win_rate(*row, random) for row in zip(np.nan_to_num(payoffs[0]), texts, strict=True)]
  return BestResponses(tuple(sides), np.array(kl), payoffs)


def make_log_prob(
  decoder: Decoder, temperature: float
) -> Callable[[Params, Prompts, Responses], np.ndarray]:
  """A function that gives log pi of each response token, [n, 1, T], at a temperature.

  Both sides of a KL are measured at this temperature, and without top-k and top-p: a token that
  they leave to one side alone would make it infinite.
  """
  score = jax.jit(scoring.make_score(temper(decoder, temperature)))

  def log_prob(params, prompts, side):
    return map_chunks(lambda chunk, _: score(params, chunk).left, Comparison(prompts, side))

  return log_prob


def make_interruptible(judge: Judge, place: str) -> Judge:
  """A judge that raises `Interrupted`, naming the place, if it is time to stop before a call."""

  def payoff(comparison):
    interrupts.check(place)
    return judge(comparison)

  return payoff


def publish(
  experiment: LanguageExperiment,
  workdir: Path,
  lines: Sequence[Mapping],
  exploited: Sequence[Mapping],
  accounts: Mapping[str, Mapping],
  more: Mapping[str, Mapping],
) -> dict:
  """Writes results, samples, metrics and the report, and prints the tables.

  Args:
    experiment: all of its stages are finished.
    workdir: the folder to write to.
    lines: records of the tournament.
    exploited: records of the exploiters.
    accounts: usage of the external judges.
    more: what else was measured, by its name in the results.
  """
  results = {**tournament.summarise(lines), **more}
  if experiment.corpus.measure:
    results['measures'] = experiment.corpus.measure(lines)
  if experiment.best_of:
    name = f'best_of_{experiment.best_of}'
    kl = results['kl_to_reference'][name]
    of_best = describe_selection(experiment.best_of, experiment.best_of_judge, 'win_rate', kl)
    results['best_of'] = {name: of_best}
  if experiment.corpus.annotator:
    results['task'] = experiment.corpus.annotator.summarise(lines)
  if exploited:
    results['exploitability'] = tournament.exploitability(exploited)
  notes = {
    name: json_lines.read_sealed(stage.folder / 'stage.json')
    for name, stage in experiment.stages.items()
  }
  curves = [
    record
    for name, stage in experiment.stages.items()
    for record in read_curve(stage.folder, notes[name].get('steps', 0))
  ]
  stages = {
    name: {fact: note[fact] for fact in ('steps', 'seconds') if fact in note}
    for name, note in notes.items()
  }
  judges = {stage: last_evaluation(curves, stage) for stage in experiment.judges}
  json_lines.write(workdir / 'samples.jsonl', lines)
  json_lines.write(workdir / 'metrics.jsonl', curves)
  json_lines.write_json(workdir / 'results.json', results)
  page = {'name': experiment.name, 'judges': judges, 'stages': stages, 'external_judges': accounts}
  requested = min(experiment.tournament_prompts, len(experiment.corpus.held_out.prompts.tokens))
  page |= {'dropped_prompts': requested - len(lines), **results}
  example = task_example(experiment.corpus)
  tournament_page.write(workdir / 'report.html', page, curves, lines, example)
  print_results(experiment, results, judges)
  return results


def last_evaluation(curves: Sequence[Mapping], stage: str) -> dict[str, float]:
  """The final metrics of a judge on held-out comparisons."""
  of_stage = [record for record in curves if record['stage'] == stage]
  last = [record for record in of_stage if 'held_out_accuracy' in record][-1]
  return {name.removeprefix('held_out_'): last[name] for name in last if 'held_out' in name}


def perfect_matrices(experiment: LanguageExperiment, judge: Judge, prompts: Prompts) -> np.ndarray:
  """A judge's preferences between perfect summaries of each style, [n, 3, 3]."""
  tokenizer = experiment.corpus.tokenizer
  texts = tokenizers.prompt_texts(tokenizer, *prompts)
  by_style = experiment.corpus.annotator.perfect_responses(texts)
  ids = [tokenizers.response_ids(tokenizer, responses) for responses in by_style]
  sides = [tokenizers.pad_responses(tokenizer, rows, experiment.response_length) for rows in ids]
  return tournament.compare_policies(judge, prompts, sides)


def print_results(
  experiment: LanguageExperiment, results: Mapping, judges: Mapping[str, Mapping]
) -> None:
  """Prints the tables of the results."""
  task = results.get('task')
  if task:
    for name, matrix in task['judge_matrix'].items():
      cyclic = 'a cycle' if experiment.corpus.annotator.weakest_edge(matrix) > 0.5 else 'NO cycle'
      cells = [[f'{value:.3f}' for value in row] for row in matrix]
      title = f'\nPerfect summaries, {name} judge ({cyclic}), row over column:'
      print(formatting.format_text(title, task['styles'], task['styles'], cells))
  print_tables(results)
  if not experiment.corpus.oracle:
    print('No oracle is known for this data: a policy may exploit the errors of its judge.')
  if 'exploitability' in results:
    print_exploiters(results['exploitability'])

  print_policies(results)
  for name, row in results.get('best_of', {}).items():
    print(
      f"  '{name}', selected by the {row['judge']} judge: its KL is estimated from the candidates, "
      f'and at most {row["kl_bound"]:.2f}.'
    )
    if row['judge'] in experiment.panel:
      print(f'  Its win rate under the {row["judge"]} judge includes the errors of that judge.')
  if judges:
    print()
  for name, row in judges.items():
    name = name.replace('_', ' ')
    print(f'The {name} agrees with {row["accuracy"]:.1%} of the held-out judgements.')


def print_policies(results: Mapping) -> None:
  """Prints KL and lengths of the entries; on the embedded task also their quality and styles."""
  columns = {'KL to sft, nats': results['kl_to_reference'], 'tokens': results['length']}
  columns |= {'unfinished': results['unfinished']}
  columns |= {'turns': results['turns']} if 'turns' in results else {}
  task = results.get('task')
  if task:
    columns['quality'] = task['quality']
  _print_columns('Policies:', results['policies'], columns)
  if task:
    styles = {
      style: {name: shares[style] for name, shares in task['shares'].items()}
      for style in (*task['styles'], 'none')
    }
    styles['best counter wins'] = {name: row['win_rate'] for name, row in task['counter'].items()}
    title = 'Shares of the styles, and win rate of the best counter-style:'
    _print_columns(title, results['policies'], styles)
  if 'measures' in results:
    _print_columns('Measures of the task:', results['policies'], results['measures'])


def _print_columns(title, entries, columns) -> None:
  # Adding zero to the rounded value avoids -0.00.
  cells = [
    [f'{round(column[name], 2) + 0.0:.2f}' for column in columns.values()] for name in entries
  ]
  print(formatting.format_text(f'\n{title}', entries, list(columns), cells))


def print_tables(results: Mapping) -> None:
  """Prints win rates, rankings and cycles under every judge."""
  as_text, entries = formatting.format_text, results['policies']
  level = results['early_stopping']['level'] if 'early_stopping' in results else 0.05
  for name, table in results['tables'].items():
    within = f'{100 * (1 - level):.0f} % within ±{tournament.widest_half_width(table):.3f}'
    title = (
      f'\nWin rate of row over column, {name} judge, {results["comparisons"]} prompts, {within}:'
    )
    print(as_text(title, *tournament.format_cells(entries, table)))
    pairs = table['pairs']
    if pairs['count'] > 1 and 'significant' in pairs:
      print(
        f'  {pairs["significant"]} of {pairs["count"]} pairs differ at 95 % each, '
        f"{pairs['significant_holm']} after Holm's correction for all of them"
      )
    for cycle in results['cycles'][name]['first'][:3]:
      round_about = ' > '.join([*cycle['policies'], cycle['policies'][0]])
      sure = '' if cycle['significant'] else ', not significant'
      print(f'  a cycle: {round_about}, its weakest link {cycle["weakest"]:.3f}{sure}')
  print_by_judge(results)
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
    title = f'\nRanking by the maximal lottery, {name} judge, 95 % intervals over prompts:'
    heads = ['share', 'wins against it', 'Borda', 'Bradley-Terry']
    print(as_text(title, [row['policy'] for row in ranked], heads, cells))
    if not results['lottery_is_unique'][name]:
      print('  The maximal lottery is not unique; this is the one of the largest entropy.')


def print_by_judge(results: Mapping) -> None:
  """Prints the win rates against the first policy under each of several judges."""
  found = results.get('by_judge')
  if not found:
    return
  judges = list(next(iter(found.values()))['judges'])
  cells = [
    [
      *(
        f'{rate["win_rate"]:.3f} [{rate["low"]:.3f}, {rate["high"]:.3f}]'
        for rate in row['judges'].values()
      ),
      row['worst'],
    ]
    for row in found.values()
  ]
  title = f'\nWin rate over {results["policies"][0]} by judge:'
  print(formatting.format_text(title, list(found), [*judges, 'worst under'], cells))


def print_exploiters(found: Mapping) -> None:
  """Prints win rates of exploiters, by the judge that trained them and the one that measures."""
  by_judges = [
    (trained_by, measured_by)
    for trained_by, measured in next(iter(found.values())).items()
    for measured_by in measured
  ]
  cells = [
    [
      f'{by_trainer[trained_by][by]["win_rate"]:.3f} [{by_trainer[trained_by][by]["low"]:.3f}, '
      f'{by_trainer[trained_by][by]["high"]:.3f}]'
      for trained_by, by in by_judges
    ]
    for by_trainer in found.values()
  ]
  columns = [f'{trained_by}, measured by {by}' for trained_by, by in by_judges]
  title = '\nWin rate of an exploiter trained against each policy under a judge, 95 %:'
  print(formatting.format_text(title, list(found), columns, cells))
