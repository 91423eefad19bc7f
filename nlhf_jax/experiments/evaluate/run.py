"""Evaluates policies: a tournament, benchmarks, and one page with all results.

Responses and judgements are cached in the work directory; a second run computes only what is
missing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nlhf_jax.data.batches import map_chunks
from nlhf_jax.evaluation import early_stopping, judgements, ranking, tournament
from nlhf_jax.evaluation.benchmarks.benchmark import EvaluatedPolicy, Judges
from nlhf_jax.evaluation.best_of_responses import Compare, Selection
from nlhf_jax.evaluation.judgements import CachedJudge, Question
from nlhf_jax.experiments.evaluate.best_of_entries import describe_best_of, print_best_of
from nlhf_jax.experiments.evaluate.cached_responses import make_policy, respond_to_prompts
from nlhf_jax.experiments.external_judges import print_usage, recorded_usage
from nlhf_jax.experiments.language.judge_stage import (
  make_judge_network,
  tokenize_prompts,
  tokenize_responses,
  train_judge,
)
from nlhf_jax.experiments.language.run import fine_tune
from nlhf_jax.experiments.language.task_example import task_example
from nlhf_jax.experiments.language.tournament_stage import print_tables
from nlhf_jax.experiments.run_log import timed
from nlhf_jax.experiments.specs import BestOf, EvaluateExperiment
from nlhf_jax.judges.judge import CombineOrders, TextPreference, mean_of_orders
from nlhf_jax.judges.kinds import ExternalJudge
from nlhf_jax.judges.registry import STAGES
from nlhf_jax.judges.remote import ChatClient
from nlhf_jax.progress import progress
from nlhf_jax.reporting import formatting, tournament_page
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Comparison, Params
from nlhf_jax.training import interrupts


class Judged(NamedTuple):
  """The judged part of a tournament.

  `rows` are indices of prompts, in the order in which they were judged; n of them. For each judge,
  `one_order` [n, M, M] is P(row beats column) with the row's response shown first, and
  `both_orders` [n, M, M] the probability that the judge computes from both orders.
  """

  rows: Sequence[int]
  one_order: Mapping[str, np.ndarray]
  both_orders: Mapping[str, np.ndarray]


def run(experiment: EvaluateExperiment, workdir: Path) -> dict:
  """Collects responses, runs all judges and benchmarks, and writes everything to `workdir`.

  Raises:
    Interrupted: on Ctrl-C or SIGTERM; the next run continues from there.
  """
  # Judges and benchmarks that cannot be used raise before anything is computed.
  external = {name: make() for name, make in experiment.external.items()}
  chat = experiment.make_chat_judge() if experiment.make_chat_judge else None
  for benchmark in experiment.benchmarks:
    benchmark.prepare()
  with recorded_usage(workdir, merge_remote(external, chat)) as accounts:
    results, lines, seconds = evaluate(experiment, external, chat, workdir)
  results['external_judges'] = accounts
  publish(experiment, workdir, results, lines, seconds)
  if 'best_of' in results:
    print_best_of(results['best_of'], experiment.judges)
  print_usage(accounts)
  return results


def merge_remote(
  external: Mapping[str, ExternalJudge], chat: ChatClient | None
) -> dict[str, ExternalJudge | ChatClient]:
  """The judges whose costs are reported; the remote judge and the chat judge are counted as one."""
  if chat is None:
    return dict(external)
  both = [chat, external['remote']] if 'remote' in external else [chat]
  counts = lambda: dict(sum((Counter(one.counts()) for one in both), Counter()))
  failure = lambda: next(filter(None, (one.last_failure() for one in both)), '')
  return {**external, 'remote': chat._replace(counts=counts, last_failure=failure)}


def evaluate(
  experiment: EvaluateExperiment,
  external: Mapping[str, ExternalJudge],
  chat: ChatClient | None,
  workdir: Path,
) -> tuple[dict, list[dict], dict[str, float]]:
  """The results, one record per prompt of the tournament, and the seconds of each stage."""
  seconds: dict[str, float] = {}
  combine = {name: judge.combine for name, judge in external.items()}
  preferences = {name: judge.preference for name, judge in external.items()}
  with timed(seconds, 'judges'):
    pairwise = make_pairwise(experiment, preferences, combine, workdir)
  judges = Judges(
    {name: pairwise[name] for name in experiment.panel},
    combine,
    chat.generate if chat else None,
    experiment.chat_judge,
  )
  selectors = {
    name: make_compare(pairwise[name], judges.combine.get(name, mean_of_orders))
    for name in experiment.selectors
  }
  with timed(seconds, 'responses'):
    policies, selections = collect_responses(experiment, selectors, workdir)
  results, lines = {'policies': list(policies)}, []
  if experiment.prompts:
    with timed(seconds, 'tournament'):
      results, lines = compete(experiment, judges, policies)
  if selections:
    results['best_of'] = describe_best_of(experiment.entries, selections)
  found = []
  for benchmark in experiment.benchmarks:
    with timed(seconds, benchmark.name):
      found += [table._asdict() for table in benchmark.run(policies, judges, workdir)]
  return {'name': experiment.name, **results, 'benchmarks': found}, lines, seconds


def make_compare(judge: CachedJudge, combine: CombineOrders) -> Compare:
  """P(left > right) from both orders, by a cached judge."""

  def compare(prompts, left, right):
    names = ('candidate', 'candidate')
    both = [
      judge([Question(*texts, names) for texts in zip(prompts, *sides, strict=True)])
      for sides in ((left, right), (right, left))
    ]
    return combine(*both)

  return compare


def collect_responses(
  experiment: EvaluateExperiment, selectors: Mapping[str, Compare], workdir: Path
) -> tuple[dict[str, EvaluatedPolicy], dict[str, Selection]]:
  """All policies with their responses, and how those of `BestOf` entries were selected.

  One network at a time is in memory.
  """
  policies, selections = {}, {}
  for name, entry in experiment.entries.items():
    folder = workdir / 'policies' / name
    policy = make_policy(experiment, name, folder)
    if experiment.prompts:
      compare = selectors[entry.judge] if isinstance(entry, BestOf) else None
      policy, selection = respond_to_prompts(experiment, policy, compare, folder)
      if selection:
        selections[name] = selection
    if policy.load:
      for benchmark in experiment.benchmarks:
        benchmark.answer(policy, workdir)
    policies[name] = policy
  return policies, selections


def compete(
  experiment: EvaluateExperiment, judges: Judges, policies: Mapping[str, EvaluatedPolicy]
) -> tuple[dict, list[dict]]:
  """The tournament's part of the results, and its records."""
  judged = judge_pairs(experiment, judges, policies)
  lines = make_lines(experiment, judged, policies)
  results = tournament.summarise(lines)
  results['dropped_prompts'] = len(judged.rows) - len(lines)
  prompts = [experiment.prompts[row] for row in judged.rows]
  responses = {name: [one.responses[text] for text in prompts] for name, one in policies.items()}
  results['order_consistency'] = {
    judge: judgements.order_consistency(table, responses)
    for judge, table in judged.one_order.items()
    if judge not in experiment.combined  # which have both orders averaged already
  }
  if experiment.early_stopping and judged.one_order:
    results['early_stopping'] = apply_early_stopping(experiment, results, lines)
    if 'by_judge' in results:  # whose intervals are those of the tables
      results['by_judge'] = tournament.compare_judges(results['policies'], results['tables'])
  return results, lines


def make_pairwise(
  experiment: EvaluateExperiment,
  external: Mapping[str, TextPreference],
  combine: Mapping[str, CombineOrders],
  workdir: Path,
) -> dict[str, CachedJudge]:
  """The judges of pairs of texts; their judgements are cached. `combine` is that of `Judges`."""
  judges = dict(external)
  used = {**experiment.judges, **experiment.selectors}
  if 'oracle' in used:
    judges['oracle'] = experiment.oracle
  if experiment.trained:
    reference = fine_tune(experiment.trained)
    for name in used:
      if name in STAGES:
        judges[name] = make_trained_judge(experiment, STAGES[name], reference)
  cached = {
    name: judgements.make_cached_judge(
      workdir / 'judgements' / f'{name}-{key}.jsonl', interruptible(name, judges[name])
    )
    for name, key in used.items()
  }
  return {
    name: cached[name]
    if name in cached
    else judgements.combine_judgements(
      {part: cached[part] for part in experiment.combined[name].judges},
      combine,
      experiment.combined[name].rule,
    )
    for name in dict.fromkeys([*experiment.panel, *experiment.selectors])
  }


def interruptible(name: str, judge: TextPreference) -> TextPreference:
  """The judge, which raises `Interrupted` between calls if the user asked to stop."""

  def preference(prompts, left, right):
    interrupts.check(f'the judgements of the {name} judge')
    return judge(prompts, left, right)

  return preference


def make_trained_judge(
  experiment: EvaluateExperiment, stage: str, reference: Params
) -> TextPreference:
  """A judge that is trained here, as a function of texts; texts that are too long are truncated."""
  trained = experiment.trained
  left_first = make_judge_network(trained, stage).left_first(train_judge(trained, stage, reference))

  def preference(prompts, left, right):
    sides = (
      tokenize_prompts(trained, prompts),
      tokenize_responses(trained, left),
      tokenize_responses(trained, right),
    )
    return map_chunks(lambda chunk, _: left_first(chunk), Comparison(*sides))[:, 0, 0]

  return preference


def judge_pairs(
  experiment: EvaluateExperiment, judges: Judges, policies: Mapping[str, EvaluatedPolicy]
) -> Judged:
  """Compares all pairs of policies under every judge in both orders, a batch of prompts at a time.

  With early stopping, prompts are judged in random order until the order of all pairs is decided.
  """
  count, size, pairwise = len(experiment.prompts), experiment.batch, judges.pairwise
  order = np.arange(count)
  if experiment.early_stopping:
    order = np.random.default_rng(experiment.seed).permutation(count)
  parts: dict[str, list[np.ndarray]] = {name: [] for name in pairwise}
  done = count
  with progress(count, 'tournament', 'prompt', hidden=not pairwise) as bar:
    for begin in range(0, count, size) if pairwise else ():
      rows = order[begin : begin + size]
      prompts = [experiment.prompts[row] for row in rows]
      texts = {
        name: [policy.responses[prompt] for prompt in prompts] for name, policy in policies.items()
      }
      for name, judge in pairwise.items():
        parts[name].append(judgements.compare_all_pairs(judge, prompts, texts))
      bar.update(len(rows))
      if experiment.early_stopping and is_decided(
        combine_orders(parts, judges.combine), experiment.early_stopping
      ):
        done = begin + len(rows)
        break
  one_order = {name: np.concatenate(tables) for name, tables in parts.items()}
  return Judged(order[:done].tolist(), one_order, combine_orders(parts, judges.combine))


def combine_orders(
  parts: Mapping[str, Sequence[np.ndarray]], combine: Mapping[str, CombineOrders]
) -> dict[str, np.ndarray]:
  """P(row beats column) from both orders; most judges take the mean."""
  return {
    name: judgements.combine_orders(np.concatenate(tables), combine.get(name, mean_of_orders))
    for name, tables in parts.items()
  }


def is_decided(both_orders: Mapping[str, np.ndarray], level: float) -> bool:
  """Whether the order of every pair is decided under every judge."""
  values = np.stack(list(both_orders.values()), axis=1)
  values = values[np.isfinite(values).all(axis=(1, 2, 3))]
  return len(values) > 0 and bool(early_stopping.decided_pairs(values, level).all())


def make_lines(
  experiment: EvaluateExperiment, judged: Judged, policies: Mapping[str, EvaluatedPolicy]
) -> list[dict]:
  """One record per prompt that every judge has judged."""
  lines = []
  for place, row in enumerate(judged.rows):
    prompt = experiment.prompts[row]
    texts = {name: policy.responses[prompt] for name, policy in policies.items()}
    lines.append(
      {
        'prompt': prompt,
        'responses': texts,
        'characters': {name: len(text) for name, text in texts.items()},
        'preferences': {
          judge: table[place].tolist() for judge, table in judged.both_orders.items()
        },
      }
    )
  both_orders = list(judged.both_orders.values())
  return tournament.drop_unjudged_prompts(lines, both_orders) if both_orders else lines


def apply_early_stopping(
  experiment: EvaluateExperiment, results: dict, lines: Sequence[Mapping]
) -> dict:
  """Which pairs are decided; tables keep only figures that hold under repeated looks at the data.

  A pair whose order was decided, but whose final win rate is on the other side, is undecided.
  """
  win_rates = results['tables']
  values = np.stack([[line['preferences'][judge] for line in lines] for judge in win_rates], axis=1)
  low, high = early_stopping.pair_intervals(values, experiment.early_stopping)
  decided = early_stopping.decided_pairs(values, experiment.early_stopping)
  decided &= (values.mean(axis=0) > 0.5) == (low > 0.5)
  above = np.triu_indices(values.shape[2], 1)
  for number, (judge, table) in enumerate(win_rates.items()):
    for name in tournament.FIXED_SAMPLE_INTERVALS:
      del table[name]
    table.update(
      low=low[number].tolist(),
      high=high[number].tolist(),
      holm_p=np.where(decided[number], 0.0, 1.0).tolist(),
      pairs={'count': len(above[0]), 'significant_holm': int(decided[number][above].sum())},
    )
    results['cycles'][judge] = ranking.cycles(results['policies'], table)
  return {
    'level': experiment.early_stopping,
    'all': bool(decided.all()),
    'prompts': len(experiment.prompts),
    'pairs': {judge: decided[number].tolist() for number, judge in enumerate(win_rates)},
  }


def publish(
  experiment: EvaluateExperiment,
  workdir: Path,
  results: Mapping,
  lines: Sequence[Mapping],
  seconds: Mapping[str, float],
) -> None:
  """Writes results, samples and the report, and prints the tables; `seconds` are by stage."""
  json_lines.write(workdir / 'samples.jsonl', lines)
  json_lines.write_json(workdir / 'results.json', results)
  example = task_example(experiment.trained.corpus) if experiment.trained else None
  page = {**results, 'stages': {stage: {'seconds': took} for stage, took in seconds.items()}}
  tournament_page.write(workdir / 'report.html', page, [], lines, example)
  if lines:
    print_tables(results)
  for judge, row in results.get('order_consistency', {}).items():
    if np.isfinite(row['consistency']):
      print(
        f'\nThe {judge} judge has the same verdict in both orders for {row["consistency"]:.1%} of '
        f'pairs; being shown first adds {row["first_place"]:+.3f} to the win probability.'
      )
  stopping = results.get('early_stopping')
  if stopping:
    outcome = 'decided' if stopping['all'] else 'not decided'
    print(
      f'The order of all pairs is {outcome} after {results["comparisons"]} of '
      f'{stopping["prompts"]} prompts, with probability at most {stopping["level"]:g} that any is '
      'wrong; the intervals above hold for all pairs together.'
    )
  for table in results['benchmarks']:
    rows = [row[0] for row in table['rows']]
    cells = [[format_cell(value) for value in row[1:]] for row in table['rows']]
    print(formatting.format_text(f'\n{table["title"]}:', rows, table['columns'], cells))


def format_cell(value: object) -> str:
  """A cell of a benchmark's table."""
  return f'{value:.3f}' if isinstance(value, float) else str(value)
