"""Trains judges of several kinds and sizes on the same comparisons, and compares them.

External judges, baselines without a network and, on the embedded task, the raters themselves are
measured on the same comparisons.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from nlhf_jax.data.batches import map_chunks, take
from nlhf_jax.data.dataset import Corpus
from nlhf_jax.data.schemas import Example
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import baselines, judge_metrics, transitivity
from nlhf_jax.evaluation.baselines import Texts
from nlhf_jax.evaluation.judge_metrics import JudgedComparisons
from nlhf_jax.experiments.external_judges import print_usage, recorded_usage
from nlhf_jax.experiments.language.judge_stage import (
  make_judge_network,
  tokenize_prompts,
  tokenize_responses,
  train_judge,
)
from nlhf_jax.experiments.language.run import fine_tune
from nlhf_jax.experiments.language.task_example import task_example
from nlhf_jax.experiments.language.tournament_stage import perfect_matrices
from nlhf_jax.experiments.specs import JudgeExperiment, LanguageExperiment
from nlhf_jax.judges.judge import BothOrders, Judge, judge_both_orders, swap_sides
from nlhf_jax.judges.kinds import ExternalJudge, JudgeNetwork
from nlhf_jax.reporting import formatting, game_plots, judge_page
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Comparison, Params
from nlhf_jax.training import interrupts
from nlhf_jax.training.trackers import read_curve

HELD_OUT = 'held out'
MIN_RESPONSES = 3  # to a prompt: the fewest that can form a cycle
MAX_RESPONSES = 16
CHUNK_TOKENS = 2**17  # of all pairs of responses that are judged at once
CHUNK_PAIRS = 256  # comparisons sent to an external judge between checks for an interruption


class Test(NamedTuple):
  """Comparisons to test on, as tokens and as texts."""

  comparisons: Comparison
  texts: Texts


def run(experiment: JudgeExperiment, workdir: Path) -> dict:
  """Trains the judges or loads them, and writes results, plots and the report to `workdir`.

  Raises:
    Interrupted: on Ctrl-C or SIGTERM; the next run continues from there.
  """
  external = {name: make() for name, make in experiment.first.external.items()}
  with recorded_usage(workdir, external) as usage:
    results, curves = compare(experiment, external)
  results['external_judges'] = usage
  publish(experiment, workdir, results, curves)
  print_usage(usage)
  return results


def compare(
  experiment: JudgeExperiment, external: Mapping[str, ExternalJudge]
) -> tuple[dict[str, object], list[dict]]:
  """The results, and the logged metrics of the judges that are trained."""
  first = experiment.first
  corpus = first.corpus
  known = as_texts(corpus.read_comparisons(corpus.train))
  held_out = as_texts(corpus.read_comparisons(corpus.held_out))
  tests = {HELD_OUT: Test(corpus.held_out.comparisons, held_out)}
  tests |= {name: make_test(first, records) for name, records in experiment.tests.items()}
  groups = make_groups(first)
  metrics, judges, cycles, curves = {test: {} for test in tests}, {}, {}, []
  for size, sized in experiment.sizes.items():
    reference = fine_tune(sized) if sized.judges else None
    for stage in sized.judges:
      network, params = make_judge_network(sized, stage), train_judge(sized, stage, reference)
      label = stage.replace('_', ' ') + (f', {size}' if len(experiment.sizes) > 1 else '')
      logged = read_curve(sized.stages[stage].folder, sized.judges[stage].steps)
      curves += [record | {'stage': label} for record in logged]
      judges[label] = describe_training(sized, stage, params, logged)
      for name, test in tests.items():
        metrics[name][label] = judge_metrics.summarise(judge_trained(network, params, test))
      cycles |= intransitivity(sized, label, network.probability_judge(params), groups)
  for label, judge in external.items():
    for name, test in tests.items():
      judged = judge_external(judge, label, name, test.texts)
      metrics[name][label] = judge_metrics.summarise(judged)
    cycles |= intransitivity(first, label, judge.make_judge(corpus.tokenizer), groups)
  for label, baseline in make_baselines(corpus, known, first.seed).items():
    for name, test in tests.items():
      if label != 'raters' or name == HELD_OUT:
        probability, lengths = baseline(test.texts), baselines.response_lengths(test.texts)
        judged = JudgedComparisons(*[probability] * 3, test.texts.votes, lengths)
        metrics[name][label] = judge_metrics.summarise(judged)
  results = {
    'name': experiment.name,
    'comparisons': len(known.votes),
    'sets': metrics,
    'judges': judges,
    'transitivity': cycles,
  }
  return results, curves


def describe_training(
  experiment: LanguageExperiment, stage: str, params: Params, logged: Sequence[Mapping]
) -> dict[str, object]:
  """The size of a trained judge, the seconds it took, and its learning curve."""
  return {
    'network': stage.replace('_', ' '),
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
    'seconds': json_lines.read_sealed(experiment.stages[stage].folder / 'stage.json')['seconds'],
    'curve': curve(logged),
  }


def as_texts(records: Sequence[Example]) -> Texts:
  """Comparisons in columns; each turn of a conversation is preceded by its role."""
  prompts = [
    record.prompt
    if isinstance(record.prompt, str)
    else '\n\n'.join(f'{turn.role}: {turn.content}' for turn in record.prompt)
    for record in records
  ]
  left, right, votes = zip(*((r.left, r.right, r.preference) for r in records), strict=True)
  return Texts(prompts, left, right, np.array(votes))


def make_test(experiment: LanguageExperiment, records: Sequence[Example]) -> Test:
  """Comparisons as texts, and as tokens truncated to the experiment's lengths."""
  sides = [
    tokenize_responses(experiment, [getattr(record, side) for record in records])
    for side in ('left', 'right')
  ]
  votes = np.array([record.preference for record in records], np.float32)
  prompts = tokenize_prompts(experiment, [record.prompt for record in records])
  return Test(Comparison(prompts, *sides, votes[:, None, None] - 0.5), as_texts(records))


def make_groups(experiment: LanguageExperiment) -> Comparison | None:
  """Held-out prompts with equally many responses each; None if none has `MIN_RESPONSES`."""
  corpus, found = experiment.corpus, {}
  for record in corpus.read_comparisons(corpus.held_out):
    found.setdefault(record.prompt, {}).update(dict.fromkeys((record.left, record.right)))
  counts = Counter(
    min(len(texts), MAX_RESPONSES) for texts in found.values() if len(texts) >= MIN_RESPONSES
  )
  if not counts:
    return None
  count = counts.most_common(1)[0][0]
  groups = {prompt: list(texts)[:count] for prompt, texts in found.items() if len(texts) >= count}
  groups = dict(list(groups.items())[: experiment.curve_prompts])
  flat = tokenize_responses(experiment, [text for texts in groups.values() for text in texts])
  responses = jax.tree.map(lambda leaf: leaf.reshape(len(groups), count, -1), flat)
  return Comparison(tokenize_prompts(experiment, list(groups)), responses)


def judge_trained(network: JudgeNetwork, params: Params, test: Test) -> JudgedComparisons:
  """The probabilities of a trained judge on every comparison, in both orders."""
  left_first = network.left_first(params)

  def both(chunk, _):
    interrupts.check('the comparison of judges')
    return left_first(chunk), left_first(swap_sides(chunk))

  forward, backward = (values[:, 0, 0] for values in map_chunks(both, test.comparisons))
  orders = BothOrders(forward, 1 - backward, (forward + 1 - backward) / 2)
  return JudgedComparisons(*orders, test.texts.votes, baselines.response_lengths(test.texts))


def judge_external(judge: ExternalJudge, name: str, test: str, texts: Texts) -> JudgedComparisons:
  """The probabilities of an external judge on every comparison; texts are not truncated.

  Raises:
    UserError: if it has no usable verdict on any comparison.
  """
  parts = []
  for begin in range(0, len(texts.votes), CHUNK_PAIRS):
    interrupts.check('the comparison of judges')
    chunk = slice(begin, begin + CHUNK_PAIRS)
    columns = texts.prompts[chunk], texts.left[chunk], texts.right[chunk]
    parts.append(judge_both_orders(judge.preference, judge.combine, *columns))
  orders = BothOrders(*map(np.concatenate, zip(*parts, strict=True)))
  if np.isnan(orders.probability).all():
    raise UserError(f'the {name} judge has no usable verdict on any comparison of {test}.')
  return JudgedComparisons(*orders, texts.votes, baselines.response_lengths(texts))


def intransitivity(
  experiment: LanguageExperiment, label: str, judge: Judge, groups: Comparison | None
) -> dict[str, dict]:
  """Label -> the intransitivity of a judge on prompts with all verdicts; empty without any."""
  payoffs = judge_all_pairs(experiment, judge, groups)
  if payoffs is None:
    return {}
  payoffs = payoffs[~np.isnan(payoffs).any(axis=(1, 2))]
  return {label: transitivity.summarise(payoffs)} if len(payoffs) else {}


def judge_all_pairs(
  experiment: LanguageExperiment, judge: Judge, groups: Comparison | None
) -> np.ndarray | None:
  """P - 1/2 of all responses to a prompt against each other, [B, K, K]; None without groups.

  On the embedded task the responses are perfect summaries, one in each style.
  """

  def interruptible(chunk):
    interrupts.check('the comparison of judges')
    return judge(chunk)

  if experiment.corpus.annotator:
    prompts = take(experiment.corpus.held_out.prompts, slice(experiment.curve_prompts))
    return perfect_matrices(experiment, interruptible, prompts) - 0.5
  if groups is None:
    return None
  _, count, length = groups.left.tokens.shape
  tokens = count**2 * (groups.prompts.tokens.shape[1] + 2 * length)  # of one prompt
  size = max(min(8, CHUNK_TOKENS // tokens), 1)
  return map_chunks(lambda chunk, _: interruptible(chunk._replace(right=chunk.left)), groups, size)


def make_baselines(corpus: Corpus, known: Texts, seed: int) -> dict[str, baselines.Baseline]:
  """Name -> a preference between texts that uses no network, fitted on `known`."""
  found = {'always the longer': baselines.make_longer_baseline(known)}
  if words := baselines.make_bag_of_words(known, seed):
    found['bag of words'] = words
  if corpus.oracle:
    found['raters'] = lambda texts: corpus.oracle(texts.prompts, texts.left, texts.right)
  return found


def curve(logged: Sequence[Mapping]) -> dict[str, list]:
  """Held-out accuracy and log-loss, and training accuracy, a mean since the previous point."""
  found = {'at': [], 'accuracy': [], 'log_loss': [], 'train_accuracy': []}
  since = []
  for record in logged:
    since.append(record['accuracy'])
    if 'held_out_accuracy' in record:
      found['at'].append(record['step'])
      found['accuracy'].append(record['held_out_accuracy'])
      found['log_loss'].append(record['held_out_log_loss'])
      found['train_accuracy'].append(float(np.mean(since)))
      since = []
  return found


def publish(
  experiment: JudgeExperiment, workdir: Path, results: Mapping, curves: Sequence[Mapping]
) -> None:
  """Writes results, metrics, plots and the report, and prints the tables."""
  figures = judge_page.draw(results)
  game_plots.write_png(workdir, figures)
  json_lines.write(workdir / 'metrics.jsonl', curves)
  json_lines.write_json(workdir / 'results.json', results)
  example = task_example(experiment.first.corpus)
  judge_page.write(workdir / 'report.html', results, figures, example)
  for test, metrics in results['sets'].items():
    count = judge_page.count(metrics)
    title = f'\n{test}, {count:,} comparisons; log-loss in nats:'
    print(formatting.format_text(title, list(metrics), judge_page.HEADS, judge_page.cells(metrics)))
    for sentence in judge_page.describe_unusable(metrics):
      print(sentence)
  if results['transitivity']:
    rows = results['transitivity']
    names = ('three_cycles', 'cyclic_energy', 'condorcet')
    cells = [[f'{row[name]:.3f}' for name in names] for row in rows.values()]
    title = '\nAll responses to a prompt against each other, shares:'
    print(formatting.format_text(title, list(rows), [n.replace('_', ' ') for n in names], cells))
