"""The lm-evaluation-harness as a benchmark: scores on its tasks, and the alignment tax.

The harness is an extra of this package (`pip install '.[harness]'`), imported when it is
used: importing it loads PyTorch, if there is one, which takes seconds.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks.benchmark import (
  Benchmark,
  BenchmarkTable,
  EvaluatedPolicy,
  Judges,
  split_list,
)
from nlhf_jax.storage import json_lines

SCORE_COLUMNS = ('metric', 'score', 'error')
TAX_COLUMNS = ('metric', 'before', 'after', 'change', 'error')


def make(section: Mapping[str, Any]) -> Benchmark | None:
  """The benchmark of the section `harness`; None if it names no tasks.

  Args:
    section: `tasks`, names of tasks or groups or paths of YAML files, separated by commas; `limit`,
      the number of questions per task, 0 for all; `trust_tasks`, whether YAML files may run code.

  Raises:
    UserError: if a setting cannot be used.
  """
  tasks = split_list(section['tasks'])
  if not tasks:
    return None
  limit = section['limit']
  if limit < 0:
    raise UserError(f'config.harness.limit={limit} must be at least 0 (0: all questions).')
  find = functools.cache(functools.partial(find_tasks, tasks, section['trust_tasks']))
  return Benchmark(
    'harness',
    run=functools.partial(run, find, limit or None),
    answer=functools.partial(answer, find, limit or None),
    prepare=lambda: (find(), None)[1],
    min_generators=1,
  )


def find_tasks(tasks: Sequence[str], trust: bool) -> tuple[Any, Sequence[Any]]:
  """The harness's task manager and the pieces to run.

  Raises:
    UserError: if the harness is not installed, has no such task, or may not run it.
  """
  try:
    from nlhf_jax.evaluation.benchmarks import lm_tasks
  except ImportError as error:
    raise UserError(
      f'config.harness.tasks needs the lm-evaluation-harness ({error}); run '
      "pip install '.[harness]' in a checkout."
    ) from None
  return lm_tasks.find_tasks(tasks, trust)


Find = Callable[[], tuple[Any, Sequence[Any]]]


def outcome_path(folder: Path, policy: EvaluatedPolicy, piece: Any, limit: int | None) -> Path:
  """The file of a policy's outcome on a piece; its name has a digest of all that determines it."""
  settings = json.dumps([policy.key, piece.settings, limit], sort_keys=True)
  digest = hashlib.sha256(settings.encode()).hexdigest()[:10]
  return folder / 'harness' / policy.name / f'{Path(piece.name).name}-{digest}.json'


def answer(find: Find, limit: int | None, policy: EvaluatedPolicy, folder: Path) -> None:
  """Runs the pieces that have no outcome yet; each outcome is written as soon as it is known.

  Raises:
    UserError: if a piece cannot be run.
    Interrupted: if the user asked to stop; finished pieces are kept.
  """
  from nlhf_jax.evaluation.benchmarks import lm_harness, lm_tasks

  @functools.cache
  def model():
    return lm_harness.HarnessModel(
      policy.load(),
      name=policy.name,
      batch=policy.batch,
      seed=policy.seed,
      before_batch=lambda: policy.check_interrupt(f'the lm-evaluation-harness with {policy.name}'),
    )

  manager, pieces = find()
  for piece in pieces:
    path = outcome_path(folder, policy, piece, limit)
    if json_lines.read_sealed(path) is None:
      json_lines.write_sealed(path, lm_tasks.evaluate(model(), manager, piece, limit))


def run(
  find: Find,
  limit: int | None,
  policies: Mapping[str, EvaluatedPolicy],
  judges: Judges,
  folder: Path,
) -> list[BenchmarkTable]:
  """Scores of a single policy, or the alignment tax of each later policy against the first.

  Raises:
    UserError: if two pieces have tasks in common.
  """
  from nlhf_jax.evaluation.benchmarks import lm_tasks

  _, pieces = find()
  outcomes = {
    name: lm_tasks.merge(
      [json_lines.read_sealed(outcome_path(folder, policy, piece, limit)) for piece in pieces]
    )
    for name, policy in policies.items()
    if policy.load
  }
  (first, before), *others = outcomes.items()
  if not others:
    rows = lm_tasks.scores(before)
    return [
      BenchmarkTable(
        f'lm-evaluation-harness, {first}',
        'Errors are standard errors.' + note_truncation(before),
        list(SCORE_COLUMNS),
        [[row['task'], *(row[column] for column in SCORE_COLUMNS)] for row in rows],
      )
    ]
  return [
    BenchmarkTable(
      f'Alignment tax, {name} after {first}',
      'Scores of the lm-evaluation-harness. The error of a change is computed as if the two '
      'policies had answered different questions.' + note_truncation(after),
      list(TAX_COLUMNS),
      [
        [row['task'], *(row[column] for column in TAX_COLUMNS)]
        for row in lm_tasks.alignment_tax(before, after)
      ],
    )
    for name, after in others
  ]


def note_truncation(outcome: Mapping) -> str:
  """A sentence about prompts that were longer than the policy's context, if there were any."""
  if not outcome['cut']:
    return ''
  return (
    f' {outcome["cut"]} prompts are longer than the context of the policy; their first tokens, '
    'mostly few-shot examples, were removed.'
  )
