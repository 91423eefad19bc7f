"""Training judges of several kinds and sizes on the same comparisons, and comparing them.

Beside them stand judges from outside, others that read nothing and, on the embedded task, the
raters themselves.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from nlhf_jax.data.batches import map_chunks, take
from nlhf_jax.data.dataset import Corpus
from nlhf_jax.data.schemas import Record
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import baselines, judge_metrics, transitivity
from nlhf_jax.evaluation.baselines import Texts
from nlhf_jax.evaluation.judge_metrics import Judged
from nlhf_jax.experiments.external_judges import accounted, announce
from nlhf_jax.experiments.judge_config import Outside
from nlhf_jax.experiments.judges.config import make_experiment
from nlhf_jax.experiments.language import config as language_config
from nlhf_jax.experiments.language.judge_stage import (
  WATCHED,
  Kind,
  encoded,
  encoded_prompts,
  make_kind,
  train_judge,
)
from nlhf_jax.experiments.language.run import fine_tune
from nlhf_jax.experiments.language.tournament_stage import perfect_matrices
from nlhf_jax.experiments.model_config import make_mesh
from nlhf_jax.experiments.specs import JudgeExperiment, LanguageExperiment
from nlhf_jax.judges.judge import Judge, Word, in_both_orders
from nlhf_jax.reporting import judge_page, tables
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Comparison, Params
from nlhf_jax.tasks.summaries import generator
from nlhf_jax.training import interrupts

HELD_OUT = 'held out'
FEWEST = 3  # responses to a prompt that can go round in a circle
MOST = 16
TOKENS = 2**17  # of all pairs of the responses to a prompt, that a judge is asked about at once
AT_ONCE = 256  # comparisons that a judge from outside is asked about between looks at the user


class Test(NamedTuple):
  """Comparisons to test on, as tokens and as texts."""

  comparisons: Comparison
  texts: Texts


def start(config: ConfigDict, name: str, workdir: Path, stages: Path) -> None:
  """Builds the experiment and runs it in its work directory; stages are kept in `stages`."""
  language_config.check(config)
  with interrupts.deferred(), make_mesh(config):
    experiment = make_experiment(config, name, stages)
    json_lines.write_json(workdir / 'config.json', config.to_dict())
    run(experiment, workdir)


def run(experiment: JudgeExperiment, workdir: Path) -> dict:
  """Trains or finds every judge, and writes results, plots and the report to `workdir`.

  Raises:
    Interrupted: on Ctrl-C or SIGTERM; running again goes on from there.
  """
  outside = {name: make() for name, make in experiment.first.given.items()}
  with accounted(workdir, outside) as accounts:
    results, curves = compare(experiment, outside)
  results['outside'] = accounts
  publish(workdir, results, curves)
  announce(accounts)
  return results


def compare(
  experiment: JudgeExperiment, outside: Mapping[str, Outside]
) -> tuple[dict[str, object], list[dict]]:
  """What is said of every judge, and the learning curves of those that are trained."""
  first = experiment.first
  corpus, several = first.corpus, len(experiment.sizes) > 1
  known = as_texts(corpus.texts(corpus.train))
  tests = {HELD_OUT: Test(corpus.held_out.comparisons, as_texts(corpus.texts(corpus.held_out)))}
  tests |= {name: make_test(first, asked) for name, asked in experiment.tests.items()}
  groups = make_groups(first)
  said, judges, cycles, curves = {test: {} for test in tests}, {}, {}, []
  for size, of_size in experiment.sizes.items():
    reference = fine_tune(of_size) if of_size.judges else None
    for stage in of_size.judges:
      kind, params = make_kind(of_size, stage), train_judge(of_size, stage, reference)
      label = stage.replace('_', ' ') + (f', {size}' if several else '')
      logged = json_lines.read(of_size.stages[stage].folder / 'metrics.jsonl')
      curves += [record | {'stage': label} for record in logged]
      judges[label] = {
        'network': stage.replace('_', ' '),
        'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
        'seconds': json_lines.read_json(of_size.stages[stage].folder / 'stage.json')['seconds'],
        'curve': curve(logged),
      }
      for test, asked in tests.items():
        said[test][label] = judge_metrics.summarise(ask(kind, params, asked))
      cycles |= intransitivity(of_size, label, kind.preference(params), groups)
  for label, given in outside.items():
    for test, asked in tests.items():
      said[test][label] = judge_metrics.summarise(ask_outside(given, label, test, asked.texts))
    cycles |= intransitivity(first, label, given.of_tokens(corpus.tokenizer), groups)
  for label, preference in make_baselines(corpus, known, first.seed).items():
    for test, asked in tests.items():
      if label != 'raters' or test == HELD_OUT:
        chance = preference(asked.texts)
        judged = Judged(*[chance] * 3, asked.texts.votes, baselines.lengths(asked.texts))
        said[test][label] = judge_metrics.summarise(judged)
  results = {
    'name': experiment.name,
    'comparisons': len(known.votes),
    'sets': said,
    'judges': judges,
    'transitivity': cycles,
  }
  return results, curves


def as_texts(asked: Sequence[Record]) -> Texts:
  """Comparisons in columns. Of a conversation it is said who speaks."""
  prompts = [
    record.prompt
    if isinstance(record.prompt, str)
    else '\n\n'.join(f'{turn.role}: {turn.content}' for turn in record.prompt)
    for record in asked
  ]
  left, right, votes = zip(*((r.left, r.right, r.preference) for r in asked), strict=True)
  return Texts(prompts, left, right, np.array(votes))


def make_test(experiment: LanguageExperiment, asked: Sequence[Record]) -> Test:
  """Comparisons as the experiment's tokens, cut to its lengths: prompts at their beginning."""
  sides = [
    encoded(experiment, [getattr(record, side) for record in asked]) for side in ('left', 'right')
  ]
  votes = np.array([record.preference for record in asked], np.float32)
  prompts = encoded_prompts(experiment, [record.prompt for record in asked])
  return Test(Comparison(prompts, *sides, votes[:, None, None] - 0.5), as_texts(asked))


def make_groups(experiment: LanguageExperiment) -> Comparison | None:
  """Held-out prompts with equally many responses each; None if none has `FEWEST`."""
  corpus, found = experiment.corpus, {}
  for record in corpus.texts(corpus.held_out):
    found.setdefault(record.prompt, {}).update(dict.fromkeys((record.left, record.right)))
  counts = Counter(min(len(texts), MOST) for texts in found.values() if len(texts) >= FEWEST)
  if not counts:
    return None
  count = counts.most_common(1)[0][0]
  kept = {prompt: list(texts)[:count] for prompt, texts in found.items() if len(texts) >= count}
  kept = dict(list(kept.items())[:WATCHED])
  flat = encoded(experiment, [text for texts in kept.values() for text in texts])
  responses = jax.tree.map(lambda leaf: leaf.reshape(len(kept), count, -1), flat)
  return Comparison(encoded_prompts(experiment, list(kept)), responses)


def ask(kind: Kind, params: Params, test: Test) -> Judged:
  """What a judge says of every comparison, in both orders."""
  shown = kind.shown(params)

  def both(chunk, _):
    interrupts.check('the comparison of judges')
    return shown(chunk), shown(chunk._replace(left=chunk.right, right=chunk.left))

  left, right = (said[:, 0, 0] for said in map_chunks(both, test.comparisons))
  word = (left, 1 - right, (left + 1 - right) / 2)
  return Judged(*word, test.texts.votes, baselines.lengths(test.texts))


def ask_outside(given: Outside, name: str, test: str, texts: Texts) -> Judged:
  """The same of a judge from outside, which reads the texts as they are, whole.

  Raises:
    UserError: if it has nothing usable to say of any.
  """
  parts = []
  for start in range(0, len(texts.votes), AT_ONCE):
    interrupts.check('the comparison of judges')
    chunk = slice(start, start + AT_ONCE)
    asked = texts.prompts[chunk], texts.left[chunk], texts.right[chunk]
    parts.append(in_both_orders(given.read, given.both, *asked))
  word = Word(*map(np.concatenate, zip(*parts, strict=True)))
  if np.isnan(word.chance).all():
    raise UserError(f'the {name} judge has no usable verdict on any comparison of {test}.')
  return Judged(*word, texts.votes, baselines.lengths(texts))


def intransitivity(
  experiment: LanguageExperiment, label: str, preference: Judge, groups: Comparison | None
) -> dict[str, dict]:
  """What cycles a judge has, by its label, if there are prompts on which it says all."""
  payoffs = ask_all(experiment, preference, groups)
  if payoffs is None:
    return {}
  payoffs = payoffs[~np.isnan(payoffs).any(axis=(1, 2))]
  return {label: transitivity.summarise(payoffs)} if len(payoffs) else {}


def ask_all(
  experiment: LanguageExperiment, preference: Judge, groups: Comparison | None
) -> np.ndarray | None:
  """P - 1/2 of all responses to a prompt against each other, [B, K, K], if there are any.

  On the embedded task those are perfect summaries, one a style.
  """

  def attended(chunk):
    interrupts.check('the comparison of judges')
    return preference(chunk)

  if experiment.corpus.embedded:
    prompts = take(experiment.corpus.held_out.prompts, slice(WATCHED))
    return perfect_matrices(experiment, attended, prompts) - 0.5
  if groups is None:
    return None
  _, count, length = groups.left.tokens.shape
  of_one = count**2 * (groups.prompts.tokens.shape[1] + 2 * length)
  size = max(min(8, TOKENS // of_one), 1)
  return map_chunks(lambda chunk, _: attended(chunk._replace(right=chunk.left)), groups, size)


def make_baselines(corpus: Corpus, known: Texts, seed: int) -> dict[str, baselines.Preference]:
  """Name -> a preference over texts that no network has."""
  found = {'always the longer': baselines.always_the_longer(known)}
  if words := baselines.bag_of_words(known, seed):
    found['bag of words'] = words
  if corpus.embedded:
    found['raters'] = lambda asked: generator.preference(asked.prompts, asked.left, asked.right)
  return found


def curve(logged: Sequence[Mapping]) -> dict[str, list]:
  """At each look at held-out comparisons: accuracy, log-loss and, since the last, training's."""
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


def publish(workdir: Path, results: Mapping, curves: Sequence[Mapping]) -> None:
  """Writes results, metrics, plots and the report, and prints the tables."""
  figures = judge_page.draw(results)
  for name, figure in figures.items():
    with json_lines.whole(workdir / f'{name}.png') as draft:
      draft.write_bytes(figure)
  json_lines.write(workdir / 'metrics.jsonl', curves)
  json_lines.write_json(workdir / 'results.json', results)
  judge_page.write(workdir / 'report.html', results, figures)
  for test, said in results['sets'].items():
    count = judge_page.count(said)
    title = f'\n{test}, {count:,} comparisons; log-loss in nats:'
    print(tables.as_text(title, list(said), judge_page.HEADS, judge_page.cells(said)))
    for sentence in judge_page.left_out(said):
      print(sentence)
  if results['transitivity']:
    rows = results['transitivity']
    names = ('three_cycles', 'cyclic_energy', 'condorcet')
    cells = [[f'{row[name]:.3f}' for name in names] for row in rows.values()]
    title = '\nAll responses to a prompt against each other, shares:'
    print(tables.as_text(title, list(rows), [n.replace('_', ' ') for n in names], cells))
