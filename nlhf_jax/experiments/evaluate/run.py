"""Comparing policies of whatever origin: a tournament, published benchmarks, one page of it all.

What was said and what was judged is kept in the work directory, and not asked for again.
"""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from nlhf_jax.data.batches import map_chunks
from nlhf_jax.evaluation import early_stopping, judgements, ranking, tournament
from nlhf_jax.evaluation.judgements import Ask
from nlhf_jax.experiments import ranges
from nlhf_jax.experiments.evaluate import benchmark_stage
from nlhf_jax.experiments.evaluate.config import EvaluateExperiment, Filed, make_experiment
from nlhf_jax.experiments.evaluate.entries import make_model, respond
from nlhf_jax.experiments.external_judges import accounted, announce
from nlhf_jax.experiments.judge_config import Outside
from nlhf_jax.experiments.language.config import TRAINED
from nlhf_jax.experiments.language.judge_stage import (
  encoded,
  encoded_prompts,
  make_kind,
  train_judge,
)
from nlhf_jax.experiments.language.run import fine_tune
from nlhf_jax.experiments.language.tournament_stage import announce_tables, heard
from nlhf_jax.experiments.model_config import make_mesh
from nlhf_jax.experiments.stages import alone
from nlhf_jax.judges.judge import Both, Preference, mean
from nlhf_jax.judges.remote import Speaker
from nlhf_jax.reporting import tables, tournament_page
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Comparison, Params
from nlhf_jax.tasks.summaries import generator
from nlhf_jax.training import interrupts


class Played(NamedTuple):
  """A tournament as far as it was judged: the numbers of the prompts, in that order, and by each
  judge P(row beats column), [n, M, M], as `shown` with the row's response first, and what it makes
  of both orders, `said`."""

  rows: Sequence[int]
  shown: Mapping[str, np.ndarray]
  said: Mapping[str, np.ndarray]


def start(config: ConfigDict, name: str, workdir: Path, stages: Path) -> None:
  """Builds the experiment and runs it in its work directory; stages are kept in `stages`."""
  ranges.check(config)
  with interrupts.deferred(), make_mesh(config), alone(workdir):
    experiment = make_experiment(config, name, stages)
    json_lines.write_json(workdir / 'config.json', config.to_dict())
    stages.mkdir(parents=True, exist_ok=True)  # answers of a judge that is asked are kept there
    run(experiment, workdir)


def run(experiment: EvaluateExperiment, workdir: Path) -> dict:
  """Lets the players respond and the judges compare, and writes everything to `workdir`.

  Raises:
    Interrupted: on Ctrl-C or SIGTERM; running again goes on from there.
  """
  # What is wrong is said first.
  outside = {name: make() for name, make in experiment.given.items()}
  grader = experiment.mt_bench.make_judge() if experiment.mt_bench else None
  with accounted(workdir, asked_by_anyone(outside, grader)) as accounts:
    results, lines = evaluate(experiment, outside, grader, workdir)
  results['outside'] = accounts
  publish(workdir, results, lines)
  announce(accounts)
  return results


def asked_by_anyone(
  outside: Mapping[str, Outside], grader: Speaker | None
) -> dict[str, Outside | Speaker]:
  """Those to give an account of; the remote judge and that of MT-Bench are one."""
  if grader is None:
    return dict(outside)
  both = [grader, outside['remote']] if 'remote' in outside else [grader]
  counts = lambda: dict(sum((Counter(one.counts()) for one in both), Counter()))
  return {**outside, 'remote': grader._replace(counts=counts)}


def evaluate(
  experiment: EvaluateExperiment,
  outside: Mapping[str, Outside],
  grader: Speaker | None,
  workdir: Path,
) -> tuple[dict, list[dict]]:
  """What was found, and the records of the tournament."""
  asked = make_asked(experiment, {name: it.read for name, it in outside.items()}, workdir)
  tasks = benchmark_stage.find_tasks(experiment)
  responses, harnessed = {}, {}
  for name, player in experiment.players.items():
    # Read when something is left to ask, and one at a time.
    load = (
      None if isinstance(player, Filed) else functools.cache(functools.partial(make_model, player))
    )
    if experiment.prompts:
      responses[name] = respond(experiment, name, load, workdir / 'players' / name)
    if load:
      benchmark_stage.answer(experiment, name, load, workdir)
      harnessed |= benchmark_stage.harness(experiment, tasks, name, load, workdir)
  results, lines = {'policies': list(experiment.players)}, []
  if experiment.prompts:
    both = {name: it.both for name, it in outside.items()}
    results, lines = compete(experiment, asked, both, responses)
  found = [
    *benchmark_stage.alpaca(experiment, asked, responses, workdir),
    *benchmark_stage.judge_answers(experiment, grader, workdir),
    *benchmark_stage.tax(harnessed),
  ]
  return {'name': experiment.name, **results, 'benchmarks': found}, lines


def compete(
  experiment: EvaluateExperiment,
  asked: Mapping[str, Ask],
  both: Mapping[str, Both],
  responses: Mapping[str, Sequence[str]],
) -> tuple[dict, list[dict]]:
  """The tournament's part of the results, and its records."""
  played = play(experiment, asked, both, responses)
  lines = make_lines(experiment, played, responses)
  results = tournament.summarise(lines)
  results['left_out'] = len(played.rows) - len(lines)
  results['orders'] = {judge: judgements.orders(shown) for judge, shown in played.shown.items()}
  if experiment.settle and asked:
    results['settled'] = settle(experiment, results, lines)
  return results, lines


def make_asked(
  experiment: EvaluateExperiment, outside: Mapping[str, Preference], workdir: Path
) -> dict[str, Ask]:
  """The judges of the panel, each of which remembers what it said."""
  read = dict(outside)
  if 'oracle' in experiment.panel:
    read['oracle'] = generator.preference
  if experiment.trained:
    reference = fine_tune(experiment.trained)
    for name in experiment.panel:
      if name in TRAINED:
        read[name] = of_trained(experiment, TRAINED[name], reference)
  return {
    name: judgements.kept(
      workdir / 'judgements' / f'{name}-{key}.jsonl', attended(name, read[name])
    )
    for name, key in experiment.panel.items()
  }


def attended(name: str, read: Preference) -> Preference:
  """The judge, which is not asked on once the user wants to stop."""

  def ask(prompts, left, right):
    interrupts.check(f'the word of the {name} judge')
    return read(prompts, left, right)

  return ask


def of_trained(experiment: EvaluateExperiment, stage: str, reference: Params) -> Preference:
  """A judge that is trained here, as one of texts; what is too long for it is cut."""
  trained = experiment.trained
  shown = make_kind(trained, stage).shown(train_judge(trained, stage, reference))

  def read(prompts, left, right):
    sides = encoded_prompts(trained, prompts), encoded(trained, left), encoded(trained, right)
    return map_chunks(lambda chunk, _: shown(chunk), Comparison(*sides))[:, 0, 0]

  return read


def play(
  experiment: EvaluateExperiment,
  asked: Mapping[str, Ask],
  both: Mapping[str, Both],
  responses: Mapping[str, Sequence[str]],
) -> Played:
  """Lets every judge compare all pairs in both orders, a batch of prompts at a time.

  If the experiment may settle early, prompts come in random order, and the first batch after which
  all pairs are settled is the last.
  """
  count, size = len(experiment.prompts), experiment.batch
  order = np.arange(count)
  if experiment.settle:
    order = np.random.default_rng(experiment.seed).permutation(count)
  parts: dict[str, list[np.ndarray]] = {name: [] for name in asked}
  done = count
  with tqdm(total=count, desc='tournament', unit='prompt', disable=not asked) as bar:
    for begin in range(0, count, size) if asked else ():
      rows = order[begin : begin + size]
      prompts = [experiment.prompts[row] for row in rows]
      said = {name: [texts[row] for row in rows] for name, texts in responses.items()}
      for name, ask in asked.items():
        parts[name].append(judgements.table(ask, prompts, said))
      bar.update(len(rows))
      if experiment.settle and is_settled(said_of(parts, both), experiment.settle):
        done = begin + len(rows)
        break
  shown = {name: np.concatenate(tables) for name, tables in parts.items()}
  return Played(order[:done].tolist(), shown, said_of(parts, both))


def said_of(
  parts: Mapping[str, Sequence[np.ndarray]], both: Mapping[str, Both]
) -> dict[str, np.ndarray]:
  """What each judge makes of both orders, from what was shown so far; most take the mean."""
  return {
    name: judgements.in_both_orders(np.concatenate(shown), both.get(name, mean))
    for name, shown in parts.items()
  }


def is_settled(said: Mapping[str, np.ndarray], level: float) -> bool:
  """Whether every pair is, under every judge."""
  tables = np.stack(list(said.values()), axis=1)
  tables = tables[np.isfinite(tables).all(axis=(1, 2, 3))]
  return len(tables) > 0 and bool(early_stopping.known(tables, level).all())


def make_lines(
  experiment: EvaluateExperiment, played: Played, responses: Mapping[str, Sequence[str]]
) -> list[dict]:
  """One record a prompt, as a tournament has them; prompts without a verdict are left out."""
  lines = []
  for place, row in enumerate(played.rows):
    texts = {name: of_player[row] for name, of_player in responses.items()}
    lines.append(
      {
        'prompt': experiment.prompts[row],
        'responses': texts,
        'characters': {name: len(text) for name, text in texts.items()},
        'preferences': {judge: table[place].tolist() for judge, table in played.said.items()},
      }
    )
  return heard(lines, list(played.said.values())) if played.said else lines


def settle(experiment: EvaluateExperiment, results: dict, lines: Sequence[Mapping]) -> dict:
  """What is settled; the tables keep nothing that does not hold where one looked on the way.

  A pair that was settled for one side and ends on the other is not settled.
  """
  tables = results['tables']
  values = np.stack([[line['preferences'][judge] for line in lines] for judge in tables], axis=1)
  low, high = early_stopping.intervals(values, experiment.settle)
  known = early_stopping.known(values, experiment.settle)
  known &= (values.mean(axis=0) > 0.5) == (low > 0.5)
  above = np.triu_indices(values.shape[2], 1)
  for number, (judge, table) in enumerate(tables.items()):
    for name in ('drawn_low', 'drawn_high', 'exact_low', 'exact_high'):
      del table[name]
    table.update(
      low=low[number].tolist(),
      high=high[number].tolist(),
      corrected=np.where(known[number], 0.0, 1.0).tolist(),
      pairs={'count': len(above[0]), 'together': int(known[number][above].sum())},
    )
    results['cycles'][judge] = ranking.cycles(results['policies'], table)
  return {
    'level': experiment.settle,
    'all': bool(known.all()),
    'prompts': len(experiment.prompts),
    'pairs': {judge: known[number].tolist() for number, judge in enumerate(tables)},
  }


def publish(workdir: Path, results: Mapping, lines: Sequence[Mapping]) -> None:
  """Writes results, samples and the report, and prints the tables."""
  json_lines.write(workdir / 'samples.jsonl', lines)
  json_lines.write_json(workdir / 'results.json', results)
  tournament_page.write(workdir / 'report.html', results, [], lines)
  if lines:
    announce_tables(results)
  for judge, of_judge in results.get('orders', {}).items():
    if len(results['policies']) > 1:
      print(
        f'\nThe {judge} judge says the same in both orders for {of_judge["consistency"]:.1%} of '
        f'pairs, and gives the first place {of_judge["first_place"]:+.3f}.'
      )
  if 'settled' in results:
    outcome = 'settled' if results['settled']['all'] else 'not settled'
    print(
      f'The order of all pairs is {outcome} after {results["comparisons"]} of '
      f'{results["settled"]["prompts"]} prompts, at a chance of {results["settled"]["level"]:g} of '
      'any being wrong; intervals above hold for all of them together.'
    )
  for table in results['benchmarks']:
    rows = [row[0] for row in table['rows']]
    cells = [[display_of(value) for value in row[1:]] for row in table['rows']]
    print(tables.as_text(f'\n{table["title"]}:', rows, table['columns'], cells))


def display_of(value: object) -> str:
  """A cell of a benchmark's table."""
  return f'{value:.2f}' if isinstance(value, float) else str(value)
